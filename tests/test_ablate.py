"""scripts/ablate.py: the grid, its table and plot, and that an interrupted one continues."""

import csv
import json
import re
import shlex
import sys

import pytest

from dataset.io import read_image
from model import save_network
from scripts import ablate
from tests.conftest import REPOSITORY, make_small_network


@pytest.fixture
def grid(davis_root, small_checkpoint, tmp_path, monkeypatch):
    """Runs the script in this process; returns the rows of table.csv."""
    dot = tmp_path / 'dot.pth'
    save_network(dot, make_small_network(similarity='dot'))

    def grid(*flags):
        monkeypatch.setattr(
            sys,
            'argv',
            [
                'ablate.py',
                '--networks',
                f'STCN, L2={small_checkpoint}',
                f'STCN, dot={dot}',
                '--root',
                str(davis_root),
                '--output',
                str(tmp_path / 'out'),
                *map(str, flags),
            ],
        )
        assert ablate.main() == 0
        with open(tmp_path / 'out' / 'table.csv', newline='') as file:
            return list(csv.DictReader(file))

    return grid


def test_a_grid_and_its_continuation(grid, tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
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
        assert '--mem_every 0 --top 0' in row['command']
    assert read_image(tmp_path / 'out' / 'plot.png').std() > 5
    assert (tmp_path / 'out' / 'table.md').read_text().count('\n') == 4

    asked = []

    def remember(script, *arguments):
        asked.append(script.name)
        raise OSError('stopped here')

    monkeypatch.setattr(ablate, 'run', remember)
    again = grid('--schedules', 'first', '--top', 0, '--flags', '--device', 'cpu')
    assert again == rows
    assert asked == []
    with pytest.raises(OSError, match='stopped here'):  # other flags are another run
        grid('--schedules', 'first', '--top', 0, '--flags', '--device', 'cpu', '--flip')
    assert asked == ['eval_davis.py']


def test_rows_have_the_scores_of_the_evaluation(grid, tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')

    def stand_in(script, *arguments):
        if script.name == 'evaluate.py':
            place = arguments[arguments.index('--json') + 1]
            place.write_text(json.dumps({'J&F': 0.5, 'J': {'mean': 0.4}, 'F': {'mean': 0.6}}))
            return ''
        return 'FPS (propagation only, of one process): 3.25\npeak memory (of one process): 1024 MiB'

    (tmp_path / 'out').mkdir()
    monkeypatch.setattr(ablate, 'run', stand_in)
    rows = grid('--schedules', 'every5', 'every3+last', '--top', 20, 0)
    assert len(rows) == 8
    assert {(row['J&F'], row['J'], row['F'], row['FPS'], row['peak MiB']) for row in rows} == {
        ('50.0', '40.0', '60.0', '3.25', '1024')
    }
    assert sum('--mem_every 3 --include_last' in row['command'] for row in rows) == 4


@pytest.mark.parametrize(
    ('text', 'flags'),
    [
        ('every5', '--mem_every 5'),
        ('every12+last', '--mem_every 12 --include_last'),
        ('first', '--mem_every 0'),
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
