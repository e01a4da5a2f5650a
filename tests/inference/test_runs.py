"""Every evaluation script gives the same masks when it is run again, on two processes, or after a kill. Flags select
the networks and sizes of an ensemble, and presets the rows of the paper's tables."""

import re
import runpy
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

import eval_youtube
from inference import run as run_module
from model import save_network
from scripts import evaluation
from scripts.flags import inference_config
from scripts.presets import PRESETS, flags_text
from tests import forks
from tests.conftest import REPOSITORY, make_small_network, tree
from tests.helpers import free_port
from util import cli


@pytest.fixture(params=['youtube', 'testdev', 'folder'])
def script(request, small_checkpoint):
    """A script with the flags of its miniature dataset."""
    if request.param == 'youtube':
        words = ['eval_youtube.py', '--yv_path', request.getfixturevalue('youtube_root')]
    elif request.param == 'testdev':
        root = request.getfixturevalue('davis_root')
        shutil.move(root / 'trainval', root / 'test-dev')
        image_sets = root / 'test-dev/ImageSets/2017'
        shutil.move(image_sets / 'val.txt', image_sets / 'test-dev.txt')
        for path in (root / 'test-dev/Annotations').rglob('*.png'):
            if path.stem != '00000':
                path.unlink()
        words = ['eval_davis.py', '--split', 'testdev', '--davis_path', root]
    else:
        words = ['scripts/eval_folder.py', '--root', request.getfixturevalue('folder_root')]
    return [*words, '--model', small_checkpoint, '--device', 'cpu', '--size', '96', '--zip']


@pytest.fixture
def run_here(script, monkeypatch, capsys):
    """The script in this process, which is faster; returns what it prints."""

    def run_here(output):
        monkeypatch.setattr(sys, 'argv', [*map(str, script), '--output', str(output)])
        monkeypatch.setattr(cli, 'stop_on_sigterm', lambda: None)  # pytest's process is not the script's
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(REPOSITORY / script[0]), run_name='__main__')
        assert end.value.code == 0
        return capsys.readouterr().out

    return run_here


def test_same_masks(script, run_here, tmp_path):
    run_here(tmp_path / 'out')
    expected, archive = tree(tmp_path / 'out'), (tmp_path / 'out.zip').read_bytes()
    assert '0 segmented, 2 finished before, 0 failed' in run_here(tmp_path / 'out')
    assert tree(tmp_path / 'out') == expected

    log = tmp_path / 'log'
    address = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port(), 'WORLD_SIZE': 2}
    words = [*script, '--output', tmp_path / 'two']
    processes = [forks.start(words, log, RANK=rank, LOCAL_RANK=rank, **address) for rank in range(2)]
    for process in processes:
        process.join(300)
        assert process.exitcode == 0, log.read_text()
    assert log.read_text().count('2 segmented, 0 finished before, 0 failed') == 1
    assert tree(tmp_path / 'two') == expected
    assert (tmp_path / 'two.zip').read_bytes() == archive

    process = forks.start([*script, '--output', tmp_path / 'killed'], log)
    while not list((tmp_path / 'killed').rglob('*.png')):
        assert process.is_alive(), log.read_text()
        time.sleep(0.002)
    process.kill()
    process.join(60)
    assert not (tmp_path / 'killed.zip').exists()
    run_here(tmp_path / 'killed')
    assert tree(tmp_path / 'killed') == expected
    assert (tmp_path / 'killed.zip').read_bytes() == archive


@pytest.fixture
def parse():
    """The parsed flags of a script of ``dataset``."""

    def parse(*words, dataset='youtube', size=480):
        parser = evaluation.evaluation_parser('', size=size, dataset=dataset)
        parser.add_argument('--split', default='val')
        parser.add_argument('--year', type=int, default=2017)
        return evaluation.parse(parser, ['--output', 'out', *words])

    return parse


def test_flags_of_ensembles(parse):
    args = parse()
    assert args.model == ['saves/stcn.pth']
    assert inference_config(args).views == ((480, None, False),)
    args = parse('--model', 'a.pth', 'b.pth', '--size', '480', '600', '0', '--kernel_sigma', '0', '7', '0.5', '--flip')
    assert args.model == ['a.pth', 'b.pth']
    config = inference_config(args)
    assert (config.size, config.kernel_sigma, config.flip) == ((480, 600, None), (None, 7, 0.5), True)
    assert config.views[2:4] == ((600, 7, False), (600, 7, True))
    assert inference_config(parse('--size', '480', '600', '--kernel_sigma', '7')).kernel_sigma == (7, 7)
    assert [inference_config(parse('--mem_every', word)).mem_every for word in ('3', '0', 'none')] == [3, None, None]


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (
            ['--size', '480', '600', '720', '--kernel_sigma', '0', '7'],
            r'--kernel_sigma: expected one value, or one for each size \(3\)',
        ),
        (['--preset', 'paper-youtube-ms', '--size', '480'], r'one for each size \(1\), found 2'),
        (['--kernel_sigma', '-1'], 'expected a positive number or 0, found -1'),
        (['--kernel_sigma', 'nan'], 'expected a positive number or 0, found nan'),
        (['--mem_every', '-5'], 'expected a positive number'),
        (['--mem_every', 'never'], 'never'),
        (['--preset', 'paper'], "invalid choice: 'paper' .*paper-youtube.*paper-youtube-ms"),
        (['--preset', 'paper-testdev'], "invalid choice: 'paper-testdev'"),
        (['--preset', 'stm'], "invalid choice: 'stm'"),
    ],
)
def test_wrong_flags(parse, capsys, words, message):
    with pytest.raises(SystemExit, match='2'):
        parse(*words)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize('name', PRESETS)
def test_presets_are_flags(parse, name):
    """The flags that are printed for a preset give the same run when they are typed."""
    dataset = PRESETS[name].dataset
    args, flags = vars(parse('--preset', name, dataset=dataset)), PRESETS[name].flags
    assert {flag: args[flag] for flag in flags} == flags
    typed = vars(parse(*flags_text(flags).split(), dataset=dataset))
    assert typed | {'preset': name} == args | {'given': typed['given']}
    assert inference_config(parse('--preset', name, dataset=dataset)) == inference_config(
        parse(*flags_text(flags).split(), dataset=dataset)
    )


def test_flags_change_presets(parse, caplog):
    caplog.set_level('INFO')
    words = ['--mem_every', '3', '--preset', 'paper-youtube-ms', '--no_flip']  # in any order
    args = parse(*words)
    assert (args.mem_every, args.flip, args.size, args.top) == (3, False, [480, 600], 20)
    evaluation.log_preset(args)
    assert caplog.messages == [
        'paper-youtube-ms (Table 3, Ours, MS: 85.2 G): --size 480 600 --kernel_sigma 0 7 --flip --top 20 '
        '--mem_every 5 --no_include_last',
        'changed by flags: --no_flip --mem_every 3',
    ]
    # A value that is the script's default overrides, too.
    assert parse('--preset', 'stm', '--top', '20', dataset='davis').top == 20
    assert not parse('--preset', 'stm', '--no_include_last', dataset='davis').include_last


@pytest.mark.parametrize('name', ['eval_davis.py', 'eval_youtube.py', 'scripts/eval_folder.py'])
def test_help_shows_the_presets(name):
    command = [sys.executable, '-X', 'importtime', name, '--help']
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert 'torch' not in result.stderr
    assert ('\n  stm: Table 1, STM, every 5th + last' in result.stdout) == (name == 'eval_davis.py')
    assert ('\n  paper-testdev-m3: ' in result.stdout) == (name == 'eval_davis.py')
    assert ('\n  paper-youtube-ms: ' in result.stdout) == (name == 'eval_youtube.py')
    assert ('--preset' in result.stdout) == (name != 'scripts/eval_folder.py')


def test_several_networks_and_sizes_end_to_end(youtube_root, small_checkpoint, tmp_path, monkeypatch):
    """One command averages what separate runs would have saved as probabilities."""
    save_network(tmp_path / 'other.pth', make_small_network(similarity='dot', key_dim=8))
    seen = []

    class Spy(run_module.Ensemble):
        def __init__(self, members, *args, **options):
            seen.append(members)
            super().__init__(members, *args, **options)

    monkeypatch.setattr(run_module, 'Ensemble', Spy)

    def evaluate(output, *words):
        monkeypatch.setattr(
            sys,
            'argv',
            [
                'eval_youtube.py',
                '--device',
                'cpu',
                '--yv_path',
                str(youtube_root),
                '--save_probs',
                '--output',
                str(tmp_path / output),
                *map(str, words),
            ],
        )
        assert eval_youtube.main() == 0
        return {
            path.relative_to(tmp_path / output): np.load(path)['prob'].astype(np.float32)
            for path in (tmp_path / output).rglob('*.npz')
        }

    found = evaluate('both', '--model', small_checkpoint, tmp_path / 'other.pth', '--size', '32', '48', '--flip')
    members = seen[0]
    assert [(member.size, member.flip) for member in members] == [
        (size, flip) for _ in range(2) for size in (32, 48) for flip in (False, True)
    ]
    assert [member.network is members[0].network for member in members] == [True] * 4 + [False] * 4
    runs = [
        evaluate(f'{model.stem} {size}', '--model', model, '--size', size, '--flip')
        for model in (small_checkpoint, tmp_path / 'other.pth')
        for size in (32, 48)
    ]
    assert len(found) == 10
    for path, prob in found.items():
        np.testing.assert_allclose(prob, np.mean([run[path] for run in runs], axis=0), atol=1e-3)
