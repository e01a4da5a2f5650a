"""train.py --average: the formula, what is saved, and what each way to take a checkpoint takes of it."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model import CheckpointError, build_network, load_network
from model.checkpoint import read_checkpoint
from tests.kill_runs import digest
from tests.tiny import TINY
from training import loop
from training.average import WeightAverage
from training.state import TrainingState, initial_network

pytestmark = pytest.mark.usefixtures('one_thread')


def checkpoint(name: str, iteration: int) -> dict:
    return read_checkpoint(f'saves/{name}/checkpoint_{iteration:08d}.pth')


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def stop_at(iteration: int) -> Callable[..., float]:
    """A replacement of ``loop.hardest_fraction`` that sends SIGTERM in this iteration, which becomes the last one."""

    def fraction(now: int, *_: int) -> float:
        if now == iteration:
            os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    return fraction


@pytest.mark.parametrize('decay', [0.05, 0.5, 0.75, 0.999])
def test_the_formula(decay):
    """The first update has d = 0.1, the one with n = 26 has d = 0.75; 0.05 is below them all."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    average = WeightAverage(network, decay)
    expected = {name: value.detach().double() for name, value in network.named_parameters()}
    for n in range(40):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        average.update(network)
        d = min(decay, (1 + n) / (10 + n))
        for name, value in network.named_parameters():
            expected[name] = d * expected[name] + (1 - d) * value.detach().double()
    assert average.updates == 40
    assert average.weights.keys() == expected.keys()
    for name, value in average.weights.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(average.weights['0.weight'], network[0].weight)


def test_the_average_of_a_run(learn, tmp_path):
    assert learn('--stage', 3, '--id', 'a', '-i', 3, '--save_every', 1, '--lr', 1e-3, '--average', 0.15) == 0
    first, second, third = (checkpoint('a', iteration) for iteration in (1, 2, 3))
    assert [each['average_updates'] for each in (first, second, third)] == [1, 2, 3]
    for before, after, d in ((first, second, 0.15), (second, third, 0.15)):
        for name, value in after['average'].items():
            mixed = (
                d * before['average'][name] + (1 - d) * after['network'][name] if value.is_floating_point() else value
            )
            torch.testing.assert_close(value, mixed, rtol=1e-5, atol=1e-7)
    changed = {name for name, value in third['average'].items() if not torch.equal(value, third['network'][name])}
    assert changed
    assert not any('running' in name for name in changed)

    # Whatever does not continue the training takes the average.
    for path in ('saves/a/a.pth', 'saves/a/checkpoint_00000003.pth'):
        assert_same_weights(load_network(path).state_dict(), third['average'])
    start = initial_network(arch=None, single_object=False, weights='saves/a/checkpoint_00000003.pth')
    assert_same_weights(start.state_dict(), third['average'])
    # Each parameter is saved once more; the statistics of batch norm are not.
    sizes = [(tmp_path / 'saves' / 'a' / name).stat().st_size for name in ('a.pth', 'checkpoint_00000003.pth')]
    assert sizes[1] < 4.1 * sizes[0]


@pytest.mark.parametrize('flags', [(), ('--amp_dtype', 'float16')], ids=['float32', 'float16'])
def test_the_weights_are_those_of_a_run_without(learn, flags):
    """This also holds where the gradient scaler skips steps."""
    learn('--stage', 3, '--id', 'with', '-i', 3, '--average', 0.9, *flags)
    learn('--stage', 3, '--id', 'without', '-i', 3, *flags)
    found, expected = checkpoint('with', 3), checkpoint('without', 3)
    assert found.keys() - expected.keys() == {'average', 'average_updates'}
    assert digest({name: found[name] for name in expected}) == digest(expected)


def test_resumes_to_the_same_bits(learn, monkeypatch, caplog):
    flags = ('--stage', 3, '-i', 6, '--save_every', 4, '--average', 0.9, '--lr', 1e-3)
    learn('--id', 'straight', *flags)
    with monkeypatch.context() as patch:
        patch.setattr(loop, 'hardest_fraction', stop_at(2))
        assert learn('--id', 'stopped', *flags) == 128 + signal.SIGTERM
    assert learn('--id', 'stopped', '--resume') == 0
    assert digest(checkpoint('stopped', 6)) == digest(checkpoint('straight', 6))
    assert_same_weights(load_network('saves/stopped/stopped.pth').state_dict(), checkpoint('straight', 6)['average'])
    assert 'average' not in caplog.text

    learn('--id', 'continued', *flags, '--load_model', 'saves/straight/checkpoint_00000004.pth')
    assert digest(checkpoint('continued', 6)) == digest(checkpoint('straight', 6))
    assert learn('--id', 'stopped', '--resume', '-i', 7, '--average', 0.99) == 0
    assert 'continues with --average 0.99, was 0.9' in caplog.text


def test_begins_in_the_middle_of_a_run(learn, caplog):
    caplog.set_level('INFO')
    learn('--stage', 3, '--id', 'a', '-i', 2, '--lr', 1e-3)
    assert learn('--id', 'a', '--resume', '-i', 3, '--average', 0.9) == 0
    assert (
        'checkpoint_00000002.pth: holds no average of the weights; the average starts from the weights of iteration 2'
        in caplog.text
    )
    before, after = checkpoint('a', 2)['network'], checkpoint('a', 3)
    assert after['average_updates'] == 1
    assert json.loads(Path('saves/a/config.json').read_text())['flags']['average'] == 0.9
    for name, value in after['average'].items():
        if value.is_floating_point():
            expected = 0.1 * before[name] + 0.9 * after['network'][name]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)

    assert learn('--stage', 3, '--id', 'b', '-i', 4, '--load_model', 'saves/a/checkpoint_00000003.pth') == 0
    assert 'its average of the weights is not continued' in caplog.text
    assert 'average' not in checkpoint('b', 4)


def test_a_damaged_average_is_refused(tmp_path):
    torch.manual_seed(0)
    network, path = build_network(TINY), tmp_path / 'damaged.pth'
    state = TrainingState(
        network,
        torch.optim.Adam(network.parameters()),
        torch.amp.GradScaler('cpu', enabled=False),
        average=WeightAverage(network, 0.9),
    )
    content = state.content()
    average, name = content['average'], 'decoder.pred.weight'
    for changes, message in (
        ({'average': average | {name: average[name] * torch.nan}}, f'{name}: expected finite numbers, found'),
        ({'average': average | {name: average[name][:, 1:]}}, f'mis-shaped: {name}'),
        ({'average': {key: value for key, value in average.items() if key != name}}, f'missing: {name}'),
        ({'average': average | {'more': torch.ones(1)}}, 'unexpected: more'),
        ({'average': 3}, '"average" holds a int, expected a state dict'),
        ({'average_updates': -1}, 'expected the number of updates of its average, found -1'),
        ({'average_updates': '1'}, "expected the number of updates of its average, found '1'"),
    ):
        torch.save(content | changes, path)
        with pytest.raises(CheckpointError, match=f'(?s)damaged.pth: .*{message}'):
            state.restore(read_checkpoint(path), path)
        if 'average' in changes:
            with pytest.raises(CheckpointError, match=f'(?s)damaged.pth: .*{message}'):
                load_network(path)


@pytest.mark.parametrize('value', ['1', '-0.1', '2', 'nan', 'much'])
def test_a_wrong_decay(learn, capsys, value):
    with pytest.raises(SystemExit):
        learn('--stage', 3, '--id', 'a', '--average', value)
    assert '--average' in capsys.readouterr().err
