"""scripts/ablate.py: the grid, its table and plot, and that an interrupted one continues."""

import csv
import json
import re
import shlex
import shutil

import pytest

from dataset.io import DataError, read_image
from inference.run import Summary
from model import save_network
from scripts import ablate, runs
from tests.conftest import REPOSITORY, make_small_network
from tests.forks import Forking
from tests.helpers import Here
from util.cli import sha256


@pytest.fixture
def grid(davis_root, resnet_checkpoint, tmp_path):
    """Runs the script in this process; returns the rows of table.csv."""
    dot = tmp_path / 'dot.pth'
    save_network(dot, make_small_network(similarity='dot'))

    def grid(*flags):
        networks = (f'STCN, L2={resnet_checkpoint}', f'STCN, dot={dot}')
        places = ('--root', davis_root, '--output', tmp_path / 'out')
        assert ablate.main([*map(str, ('--networks', *networks, *places, *flags))]) == 0
        with open(tmp_path / 'out' / 'table.csv', newline='') as file:
            return list(csv.DictReader(file))

    return grid


def test_a_grid_and_its_continuation(grid, tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    monkeypatch.setattr(runs, 'ProcessPoolExecutor', Here)
    rows = grid('--schedules', 'first', '--top', 0, '--flags', '--device', 'cpu')
    assert [(row['network'], row['memory'], row['top-k']) for row in rows] == [
        ('STCN, L2', 'first', 'all'),
        ('STCN, dot', 'first', 'all'),
    ]
    for row in rows:
        assert 0 <= float(row['J&F']) <= 100
        assert float(row['J&F']) == pytest.approx((float(row['J']) + float(row['F'])) / 2, abs=0.11)
        assert float(row['FPS']) > 0
        command = shlex.split(row['command'])
        assert command[:2] == ['python', 'eval_davis.py']
        assert (REPOSITORY / command[1]).exists()
        assert '--mem_every 0 --no_include_last --top 0' in row['command']
    assert read_image(tmp_path / 'out' / 'plot.png').std() > 5
    assert (tmp_path / 'out' / 'table.md').read_text().count('\n') == 4

    asked = []

    def remember(script, arguments):
        asked.append(arguments)
        raise OSError('stopped here')

    monkeypatch.setattr(runs, 'segment', remember)
    again = grid('--schedules', 'first', '--top', 0, '--flags', '--device', 'cpu')
    assert again == rows
    assert asked == []
    with pytest.raises(OSError, match='stopped here'):  # other flags are another run
        grid('--schedules', 'first', '--top', 0, '--flags', '--device', 'cpu', '--flip')
    assert [arguments[-1] for arguments in asked] == ['--flip']


def test_a_replaced_file_is_measured_again(davis_root, resnet_checkpoint, tmp_path, monkeypatch):
    network = shutil.copy(resnet_checkpoint, tmp_path / 'network.pth')
    asked = []
    summary = Summary(videos=2, frames=12, propagation=4.0, peak_memory=2**30)

    def segment(script, arguments):
        asked.append(list(arguments))
        (tmp_path / 'row').mkdir(exist_ok=True)
        settings = {'network': sha256(network)}
        (tmp_path / 'row' / 'settings.json').write_text(json.dumps(settings))
        return summary

    monkeypatch.setattr(runs, 'segment', segment)

    def measure():
        arguments = ['--model', 'another.pth', '--top', '20']
        flags = [f'--model={network}', '--device', 'cpu']
        return runs.measure('eval_davis.py', arguments, tmp_path / 'row', flags=flags, truths=None)

    def finished_before():
        count = len(asked)
        measure()
        return len(asked) == count

    assert not finished_before()
    assert '--overwrite' not in asked[-1]
    assert finished_before()
    save_network(network, make_small_network(similarity='dot'))
    assert not finished_before()
    assert asked[-1][-1] == '--overwrite'
    assert finished_before()
    # Results of older versions lack the networks' hash, which is then taken from the settings of the masks.
    kept = json.loads((tmp_path / 'row.json').read_text())
    del kept['network']
    (tmp_path / 'row.json').write_text(json.dumps(kept))
    assert finished_before()
    shutil.copy(resnet_checkpoint, network)
    assert not finished_before()
    assert '--overwrite' not in measure().command


def test_rows_have_the_scores_of_the_evaluation(grid, tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')

    (tmp_path / 'out').mkdir()
    summary = Summary(videos=1, frames=13, propagation=4.0, peak_memory=2**30)
    monkeypatch.setattr(runs, 'segment', lambda script, arguments: summary)
    numbers = {'J&F': 0.5, 'J': {'mean': 0.4}, 'F': {'mean': 0.6}}
    monkeypatch.setattr(runs, 'score_results', lambda truths, folder, num_workers: numbers)
    rows = grid('--schedules', 'every5', 'every3+last', '--top', 20, 0)
    assert len(rows) == 8
    assert {(row['J&F'], row['J'], row['F'], row['FPS'], row['peak MiB']) for row in rows} == {
        ('50.0', '40.0', '60.0', '3.25', '1024')
    }
    assert sum('--mem_every 3 --include_last' in row['command'] for row in rows) == 4


def test_a_run_that_fails_ends_the_grid(grid, tmp_path, davis_root, monkeypatch):
    """It has a process of its own, whose summary comes back."""
    pytest.importorskip('matplotlib')
    monkeypatch.setattr(runs, 'ProcessPoolExecutor', Forking)
    frame = next(davis_root.rglob('JPEGImages/480p/dog/00001.png'))
    frame.write_bytes(frame.read_bytes()[:100])
    with pytest.raises(DataError, match=r'1 failed(.|\n)*00001\.png'):
        grid('--schedules', 'first', '--flags', '--device', 'cpu')
    assert not list((tmp_path / 'out').glob('*.json'))


@pytest.mark.parametrize(
    ('text', 'flags'),
    [
        ('every5', '--mem_every 5 --no_include_last'),
        ('every12+last', '--mem_every 12 --include_last'),
        ('first', '--mem_every 0 --no_include_last'),
        ('first+last', '--mem_every 0 --include_last'),
    ],
)
def test_schedules(text, flags):
    assert ' '.join(ablate.schedule_flags(ablate.schedule(text))) == flags


@pytest.mark.parametrize(
    'flags',
    [('--schedules', 'every0'), ('--schedules', 'last'), ('--networks', 'no-file'), ('--networks', 'a=nowhere.pth')],
)
def test_what_is_not_understood_ends_at_once(grid, flags, capsys):
    with pytest.raises(SystemExit):
        grid(*flags)
    assert re.search('expected (NAME=FILE|every<N>)|no such checkpoint file', capsys.readouterr().err)
