"""train.py in processes of its own: killed, under torchrun, in a chain, and as a command."""

import json
import random
import subprocess
import sys

import pytest

from dataset.io import read_mask
from dataset.video import read_split
from model.checkpoint import read_checkpoint
from tests.conftest import REPOSITORY
from tests.kill_runs import ENVIRONMENT, TINY, kill_training
from tests.tiny import training_flags

LIMIT = 240  # seconds


def execute(command, folder, **environment):
    result = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_killed_and_resumed_is_as_uninterrupted(tmp_path):
    """Bit for bit, at every checkpoint; python tests/kill_runs.py does it more often."""
    tally = kill_training(tmp_path, kills=3, rng=random.Random(0), fresh_share=1)
    assert tally.signals.total() == 3
    assert tally.finished > 0
    assert not tally.differences


def test_two_processes_give_the_gradients_of_one_and_restart_by_themselves(roots, tmp_path):
    """Both are killed in the last iteration; torchrun starts them again, and they go on where they were.

    They keep the average of one process, and share the videos that are evaluated.
    """
    held_aside = ['bear', read_split('youtube_vos_train')[0]]
    run = [
        REPOSITORY / 'train.py',
        *training_flags(roots),
        '-b',
        4,
        '--stage',
        3,
        '-i',
        3,
        '--num_workers',
        1,
        '--save_every',
        1,
        '--log_every',
        1,
        '--seed',
        3,
        '--average',
        0.5,
        '--evaluate_every',
        2,
        '--hold_aside',
        *held_aside,
    ]
    torchrun = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc_per_node',
        2,
        '--max_restarts',
        1,
    ]
    execute([*TINY, *run, '--id', 'one'], tmp_path)
    log = execute([*torchrun, *TINY[1:], *run, '--id', 'two', '--accumulation', 2], tmp_path, STCN_TEST_DIE_AT='2')
    assert 'continuing after iteration 2' in log
    assert sum(line.startswith('3/3  loss') for line in log.splitlines()) == 1  # one speaks for both
    assert log.count('evaluation after iteration 3: ') == 1
    [one, two] = (read_checkpoint(tmp_path / 'saves' / name / 'best.pth')['evaluation'] for name in ('one', 'two'))
    assert list(one['videos']) == list(two['videos']) == held_aside
    assert two['J&F'] == pytest.approx(one['J&F'], abs=0.01)
    assert json.loads((tmp_path / 'saves' / 'two' / 'config.json').read_text())['processes'] == 2

    [one, two] = (read_checkpoint(tmp_path / 'saves' / name / 'checkpoint_00000001.pth') for name in ('one', 'two'))
    moments = [[each['exp_avg'] for each in checkpoint['optimizer']['state'].values()] for checkpoint in (one, two)]
    scale = max(gradient.norm() for gradient in moments[0])  # Adam's first moment is a tenth of the gradient
    for a, b in zip(*moments, strict=True):
        assert (a - b).norm() <= 1e-4 * a.norm() + 1e-7 * scale
    [one, two] = (read_checkpoint(tmp_path / 'saves' / name / f'{name}.pth')['network'] for name in ('one', 'two'))
    assert max((one[name].double() - two[name].double()).abs().max() for name in one) < 1e-5


def test_chain_from_images_to_masks(roots, tmp_path):
    chain = [
        'bash',
        REPOSITORY / 'scripts' / 'train_chain.sh',
        's012',
        'mine',
        *training_flags(roots),
        '-i',
        2,
        '--num_workers',
        0,
        '--log_every',
        1,
    ]
    launch = {'LAUNCH': ' '.join(TINY)}
    execute(chain, tmp_path, **launch)
    saves = tmp_path / 'saves'
    assert sorted(path.name for path in saves.iterdir()) == ['mine_s0', 'mine_s01', 'mine_s012']
    for before, after in (('mine_s0', 'mine_s01'), ('mine_s01', 'mine_s012')):
        config = json.loads((saves / after / 'config.json').read_text())
        assert config['flags']['load_network'] == f'saves/{before}/{before}.pth'
        start, end = (read_checkpoint(saves / name / f'{name}.pth')['network'] for name in (before, after))
        name = 'decoder.pred.weight'
        assert (start[name] - end[name]).abs().max() < 1e-4  # two small steps from there

    (saves / 'mine_s012' / 'mine_s012.pth').unlink()  # as if the last stage had been interrupted
    log = execute(chain, tmp_path, **launch)
    assert 'stage 0: finished' in log
    assert 'stage 1: finished' in log
    assert 'continuing after iteration 2' in log
    execute(
        [
            sys.executable,
            REPOSITORY / 'eval_davis.py',
            '--model',
            saves / 'mine_s012' / 'mine_s012.pth',
            '--davis_path',
            roots['davis_root'] / '2017',
            '--output',
            tmp_path / 'out',
            '--device',
            'cpu',
        ],
        tmp_path,
    )
    assert read_mask(tmp_path / 'out' / 'blackswan' / '00007.png').shape == (100, 140)


@pytest.mark.parametrize('arguments', [[], ['s03'], ['s5', 'name']])
def test_wrong_chain(arguments):
    result = subprocess.run(
        ['bash', 'scripts/train_chain.sh', *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert result.returncode in (1, 2)
    assert 'NAME' in result.stderr


def test_missing_imagenet_weights_offline(roots, tmp_path):
    """No network: the error names the file and its place, soon, and no run is begun."""
    command = [*TINY, REPOSITORY / 'train.py', *training_flags(roots), '--stage', '3', '--id', 'a', '--arch', 'stcn']
    command = [part for part in command if part not in ('--backbone_weights', 'none')]
    result = subprocess.run(
        list(map(str, command)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=ENVIRONMENT | {'TORCH_HOME': str(tmp_path / 'torch'), 'https_proxy': 'http://127.0.0.1:9'},
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f'error: {tmp_path}/torch/hub/checkpoints/resnet18-f37072fd.pth: ImageNet weights of')
    assert 'https://download.pytorch.org/models/resnet18-f37072fd.pth' in last
    assert last.endswith('(--backbone_weights)')
    assert not (tmp_path / 'saves').exists()
