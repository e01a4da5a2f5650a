"""train.py in processes of its own: under torchrun and in a chain. tests/robustness/test_faults.py kills it."""

import json
import os
import subprocess
import sys
import urllib.request

import pytest

import eval_davis
import train
from dataset.io import read_mask
from dataset.video import read_split
from model.checkpoint import read_checkpoint
from tests.conftest import REPOSITORY
from tests.kill_runs import ENVIRONMENT, TINY
from tests.tiny import training_flags
from util.errors import UserError

pytestmark = pytest.mark.long

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


def test_two_processes_give_the_gradients_of_one_and_restart_by_themselves(roots, learn, tmp_path):
    """Both are killed in the last iteration; torchrun starts them again, and they go on where they were.

    They keep the average of one process, and share the videos that are evaluated.
    """
    held_aside = ['bear', read_split('youtube_vos_train')[0]]
    flags = ['-b', 4, '--stage', 3, '-i', 3, '--num_workers', 1, '--save_every', 1, '--log_every', 1, '--seed', 3]
    flags += ['--average', 0.5, '--evaluate_every', 2, '--hold_aside', *held_aside]
    assert learn(*flags, '--id', 'one') == 0
    torchrun = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', 2, '--max_restarts', 1]
    run = [*TINY[1:], REPOSITORY / 'train.py', *training_flags(roots), *flags, '--id', 'two', '--accumulation', 2]
    log = execute([sys.executable, *torchrun, *run], tmp_path, STCN_TEST_DIE_AT='2')
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


CHAIN = ['bash', REPOSITORY / 'scripts' / 'train_chain.sh']


def test_chain_from_images_to_masks(roots, tmp_path):
    flags = [*training_flags(roots), '-i', 2, '--num_workers', 0, '--log_every', 1]
    chain, launch = [*CHAIN, 's03', 'mine', *flags], {'LAUNCH': ' '.join(TINY)}
    execute(chain, tmp_path, **launch)
    saves = tmp_path / 'saves'
    assert sorted(path.name for path in saves.iterdir()) == ['mine_s0', 'mine_s03']
    config = json.loads((saves / 'mine_s03' / 'config.json').read_text())
    assert config['flags']['load_network'] == 'saves/mine_s0/mine_s0.pth'
    start, end = (read_checkpoint(saves / name / f'{name}.pth')['network'] for name in ('mine_s0', 'mine_s03'))
    name = 'decoder.pred.weight'
    assert (start[name] - end[name]).abs().max() < 1e-4  # two small steps from there

    weights = saves / 'mine_s03' / 'mine_s03.pth'
    weights.unlink()  # as if the last stage had been interrupted
    log = execute(chain, tmp_path, **launch)
    assert 'stage 0: finished' in log
    assert 'continuing after iteration 2' in log
    words = ['--model', weights, '--davis_path', roots['davis_root'] / '2017', '--output', tmp_path / 'out']
    assert eval_davis.main([*map(str, words), '--device', 'cpu', '--num_threads', '1']) == 0
    assert read_mask(tmp_path / 'out' / 'blackswan' / '00007.png').shape == (100, 140)


def test_every_stage_of_a_chain_goes_on_from_the_one_before(tmp_path):
    """What is started, by a LAUNCH that says so and trains nothing."""
    done = subprocess.run(
        [*map(str, CHAIN), 's012', 'mine', '-i', '2'],
        cwd=tmp_path,
        env=os.environ | {'LAUNCH': 'echo'},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    train = REPOSITORY / 'scripts' / '..' / 'train.py'
    assert done.stdout.splitlines() == [
        f'{train} -i 2 --stage 0 --id mine_s0 --resume',
        f'{train} -i 2 --stage 1 --id mine_s01 --resume --load_network saves/mine_s0/mine_s0.pth',
        f'{train} -i 2 --stage 2 --id mine_s012 --resume --load_network saves/mine_s01/mine_s01.pth',
    ]


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


def test_missing_imagenet_weights_offline(roots, tmp_path, monkeypatch):
    """No network: the error names the file and its place, soon, and no run is begun."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')
    monkeypatch.setattr(urllib.request, '_opener', None)  # one that an earlier test made would not know the proxy
    flags = [flag for flag in training_flags(roots) if flag not in ('--backbone_weights', 'none')]
    with pytest.raises(UserError) as error:
        train.main([*flags, '--stage', '3', '--id', 'a', '--arch', 'stcn'])
    message = str(error.value)
    assert message.startswith(f'{tmp_path}/torch/hub/checkpoints/resnet18-f37072fd.pth: ImageNet weights of')
    assert 'https://download.pytorch.org/models/resnet18-f37072fd.pth' in message
    assert error.value.options == ('backbone_weights',)
    assert not (tmp_path / 'saves').exists()
