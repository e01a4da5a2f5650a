"""scripts/reproduce.py: the rows that can run, those that cannot, and that an interrupted table continues."""

import re
import shutil

import pytest

from inference.run import Summary
from model import CheckpointError
from scripts import reproduce, runs
from scripts.presets import PRESETS
from tests.conftest import REPOSITORY
from tests.helpers import Here


@pytest.fixture
def tables(davis_root, youtube_root, small_checkpoint, tmp_path, capsys, monkeypatch):
    """Runs the script in this process, with the weights that are named; returns the status and the printed rows.

    Its rows, too; tests/scripts/test_ablate.py has one in a process of its own.
    """
    monkeypatch.setattr(runs, 'ProcessPoolExecutor', Here)
    saves = tmp_path / 'saves'
    saves.mkdir()

    def tables(which, *weights, flags=('--device', 'cpu')):
        for name in weights:
            shutil.copy(small_checkpoint, saves / name)
        places = (
            '--saves',
            saves,
            '--davis_path',
            davis_root,
            '--yv_path',
            youtube_root,
            '--output',
            tmp_path / 'out',
        )
        status = reproduce.main([*map(str, ('--table', which, *places, '--flags', *flags))])
        printed = capsys.readouterr().out
        assert (tmp_path / 'out' / f'table{which}.md').read_text() + '\n' == printed
        rows = [[cell.strip() for cell in line.split(' | ')] for line in printed.splitlines()[4:] if line]
        return status, {row[0].removeprefix('| '): row[1:] for row in rows}

    return tables


def test_the_rows_of_table_1(tables, monkeypatch):
    status, rows = tables(1, 'stcn_s03.pth')
    assert status == 0
    assert list(rows) == [row.name for row in reproduce.TABLES[1].rows]
    published, score, published_fps, fps, command = rows['STCN, L2, every 5th only']
    assert (published, published_fps) == ('85.4', '20.2')
    assert 0 < float(score) < 100
    assert float(fps) > 0
    assert command.startswith('`python eval_davis.py --preset paper-val --model ')
    last = rows['STCN, L2, every 5th + last']
    assert last[:1] + last[2:3] == ['83.1', '']
    assert float(last[1]) > 0
    for name in ('STM, dot, every 5th + last', 'STCN, dot, every 5th only'):
        assert rows[name][1] == rows[name][3] == ''
    remark = rows['STM, dot, every 5th + last'][4]
    assert re.search(r'missing: .*saves/stm\.pth: `scripts/train_chain\.sh s03 stm --arch stm; cp', remark)

    monkeypatch.setattr(runs, 'segment', lambda *arguments: pytest.fail('ran again'))
    assert tables(1) == (status, rows)


def test_rows_that_a_server_scores(tables, tmp_path):
    status, rows = tables(3, 'stcn.pth', flags=('--device', 'cpu', '--size', '32', '48'))
    assert status == 0
    for index, (name, published) in enumerate((('Ours', '84.2'), ('Ours, MS', '85.2')), 1):
        assert rows[name][:3] == [published, '', '']
        assert float(rows[name][3]) > 0
        archive = tmp_path / 'out' / f'table3-row{index}.zip'
        assert archive.is_file()
        assert rows[name][4].startswith(f'to be submitted: {archive}; `python eval_youtube.py')
    assert 'stcn_wide.pth' in rows['Ours, MS, ensemble'][4]
    assert 'stcn_wide_aspp.pth' in rows['Ours, MS, ensemble'][4]


def test_data_that_are_missing(tables, davis_root):
    status, rows = tables(2, 'stcn.pth')  # the root has no test-dev
    assert status == 1
    assert '`python scripts/download.py davis`' in rows['Ours + BL30K'][4]
    assert 'download.py weights' in rows['Ours'][4]


def test_a_row_that_fails_does_not_stop_the_others(tables, monkeypatch):
    def segment(script, arguments):
        if any(word.endswith('stm.pth') for word in arguments):
            raise CheckpointError('stm.pth: truncated')
        return Summary(videos=1, frames=13, propagation=4.0, peak_memory=2**30)

    numbers = {'J&F': 0.5, 'J': {'mean': 0.4}, 'F': {'mean': 0.6}}
    monkeypatch.setattr(runs, 'segment', segment)
    monkeypatch.setattr(runs, 'score_results', lambda truths, folder, num_workers: numbers)
    status, rows = tables(1, 'stm.pth', 'stcn_s03.pth')
    assert status == 1
    assert rows['STM, dot, every 5th only'][1:2] + rows['STM, dot, every 5th only'][4:] == [
        '',
        'failed: stm.pth: truncated |',
    ]
    assert rows['STCN, L2, every 5th only'][:4] == ['85.4', '50.0', '20.2', '3.25']


def test_rows_are_those_of_the_documentation():
    """Their figures are the same, and so are the commands that get their weights."""
    text = (REPOSITORY / 'docs' / 'paper.md').read_text()
    for number, table in reproduce.TABLES.items():
        section = text[text.index(f'## {table.title.split(":")[0]}:') :]
        for row in table.rows:
            assert str(row.score) in section, f'table {number}: {row.name}'
            assert {row.preset} <= set(PRESETS)
            assert set(row.weights) <= set(reproduce.WEIGHTS)
    for name in reproduce.WEIGHTS:
        assert f'saves/{name}' in text
