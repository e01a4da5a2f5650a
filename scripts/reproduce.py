"""Reproduce the paper's tables: run every row whose weights and data exist, and print published and measured numbers.

    python scripts/reproduce.py --table 1 --output ../results/paper

For the other rows it prints what is missing and how to get it. To continue after an interruption, or when more weights
or data exist, run the same command again. Writes table1.md and so on to the output folder. As in the paper, FPS do
not include reading and writing. The paper's FPS were measured on an RTX 2080 Ti.

Table 1 is scored by this script. Only the servers have the ground truth of tables 2 and 3: for these rows the script
writes an archive to submit.
"""

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.davis import davis_truth, davis_videos
from scripts.presets import PRESETS
from scripts.runs import Measurement, measure
from util.cli import run_main
from util.errors import DataError, UserError
from util.files import atomic_path

log = logging.getLogger(__name__)

DOWNLOAD = 'python scripts/download.py weights'
TRAIN = 'scripts/train_chain.sh {chain} {name} {flags}; cp saves/{name}_{chain}/{name}_{chain}.pth saves/{name}.pth'
WEIGHTS = {
    'stcn.pth': DOWNLOAD,
    'stcn_s03.pth': DOWNLOAD,
    'stcn_dot.pth': TRAIN.format(chain='s03', name='stcn_dot', flags='--similarity dot'),
    'stm.pth': TRAIN.format(chain='s03', name='stm', flags='--arch stm'),
    'stm_l2.pth': TRAIN.format(chain='s03', name='stm_l2', flags='--arch stm --similarity l2'),
    'stcn_wide.pth': TRAIN.format(chain='s012', name='stcn_wide', flags='--arch stcn_wide'),
    'stcn_wide_aspp.pth': TRAIN.format(chain='s012', name='stcn_wide_aspp', flags='--arch stcn_wide_aspp'),
}
"""File of a network -> the command that downloads or trains it."""


@dataclass(frozen=True)
class Row:
    """A row of the paper: its networks, its settings, and its published numbers."""

    name: str
    weights: tuple[str, ...]
    preset: str
    score: float
    fps: float = math.nan  # not published


@dataclass(frozen=True)
class Table:
    """A table of the paper."""

    title: str
    metric: str
    split: str  # the split of the data set that the rows use
    rows: tuple[Row, ...]
    scored: bool  # whether this script scores the masks; otherwise a server does


TABLES = {
    1: Table(
        'Table 1: DAVIS 2017 val',
        'J&F',
        'val',
        (
            Row('STM, dot, every 5th + last', ('stm.pth',), 'stm', 83.3, 10.2),
            Row('STM, dot, every 5th only', ('stm.pth',), 'stm-every5', 81.3),
            Row('STM, L2, every 5th + last', ('stm_l2.pth',), 'stm', 82.7),
            Row('STM, L2, every 5th only', ('stm_l2.pth',), 'stm-every5', 81.0),
            Row('STCN, dot, every 5th + last', ('stcn_dot.pth',), 'paper-val-last', 84.3),
            Row('STCN, dot, every 5th only', ('stcn_dot.pth',), 'paper-val', 84.1),
            Row('STCN, L2, every 5th + last', ('stcn_s03.pth',), 'paper-val-last', 83.1),
            Row('STCN, L2, every 5th only', ('stcn_s03.pth',), 'paper-val', 85.4, 20.2),
        ),
        scored=True,
    ),
    2: Table(
        'Table 2: DAVIS 2017 test-dev',
        'J&F',
        'testdev',
        (
            Row('Ours', ('stcn_s03.pth',), 'paper-testdev', 76.1, 20.2),
            Row('Ours, M3', ('stcn_s03.pth',), 'paper-testdev-m3', 76.5, 14.6),
            Row('Ours + BL30K', ('stcn.pth',), 'paper-testdev', 77.8, 20.2),
            Row('Ours + BL30K, M3', ('stcn.pth',), 'paper-testdev-m3', 79.9, 14.6),
        ),
        scored=False,
    ),
    3: Table(
        'Table 3: YouTubeVOS 2019 validation',
        'G',
        'valid',
        (
            Row('Ours', ('stcn.pth',), 'paper-youtube', 84.2),
            Row('Ours, MS', ('stcn.pth',), 'paper-youtube-ms', 85.2),
            Row(
                'Ours, MS, ensemble',
                ('stcn.pth', 'stcn_wide.pth', 'stcn_wide_aspp.pth'),
                'paper-youtube-ensemble',
                86.7,
            ),
        ),
        scored=False,
    ),
}
"""The tables by their numbers. docs/paper.md has the same published results."""


def missing(row: Row, table: Table, args: argparse.Namespace) -> list[str]:
    """The files and folders that a row needs and that do not exist, each with the command that gets it."""
    lines = [f'{args.saves / name}: `{WEIGHTS[name]}`' for name in row.weights if not (args.saves / name).is_file()]
    if PRESETS[row.preset].dataset == 'davis':
        try:
            davis_videos(args.davis_path, year=2017, split=table.split)
        except DataError as error:
            lines.append(f'{error}: `python scripts/download.py davis`')
    else:
        for folder in (args.yv_path / 'valid', args.yv_path / 'all_frames' / 'valid_all_frames' / 'JPEGImages'):
            if not folder.is_dir():
                lines.append(f'{folder}: `python scripts/download.py youtube`')
    return lines


def run_row(row: Row, table: Table, folder: Path, args: argparse.Namespace) -> Measurement:
    """Segment with the row's networks and settings, and score the masks if the ground truth is public."""
    arguments = ['--preset', row.preset, '--model', *(str(args.saves / name) for name in row.weights)]
    if PRESETS[row.preset].dataset == 'davis':
        script = 'eval_davis.py'
        arguments += ['--davis_path', str(args.davis_path)]
    else:
        script = 'eval_youtube.py'
        arguments += ['--yv_path', str(args.yv_path)]
    if table.scored:
        truths = partial(davis_truth, args.davis_path, split=table.split)
    else:
        truths = None
        arguments.append('--zip')
    return measure(script, arguments, folder, flags=args.flags, truths=truths)


def line(row: Row, measured: Measurement | None, remark: str) -> str:
    """A row of the printed table, as Markdown."""
    score, fps = (measured.jf, measured.fps) if measured else (math.nan, math.nan)
    values = [number(row.score, 1), number(score, 1), number(row.fps, 1), number(fps, 2)]
    return f'| {row.name} | {" | ".join(values)} | {remark} |'


def number(value: float, digits: int) -> str:
    return '' if math.isnan(value) else f'{value:.{digits}f}'


def reproduce(which: int, args: argparse.Namespace) -> tuple[str, bool]:
    """Run a table. Returns it as Markdown, and whether at least one row ran and none failed."""
    table = TABLES[which]
    lines = [
        f'## {table.title}\n',
        f'| row | {table.metric}, published | measured | FPS, published | measured | |',
        '|---|---:|---:|---:|---:|---|',
    ]
    finished, failed = 0, 0
    for index, row in enumerate(table.rows, 1):
        folder = args.output / f'table{which}-row{index}'
        if lacks := missing(row, table, args):
            lines.append(line(row, None, 'missing: ' + '; '.join(lacks)))
            continue
        try:
            measured = run_row(row, table, folder, args)
        except UserError as error:  # an error in one row does not stop the others
            log.error('%s: %s', row.name, error)
            lines.append(line(row, None, 'failed: ' + str(error).replace('\n', '; ')))
            failed += 1
            continue
        remark = f'`{measured.command}`'
        lines.append(line(row, measured, remark if table.scored else f'to be submitted: {folder}.zip; {remark}'))
        finished += 1
    return '\n'.join(lines) + '\n', finished > 0 and not failed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--table', type=int, nargs='+', choices=TABLES, required=True, help='numbers of the tables')
    add('--output', type=Path, required=True, help='folder for masks, archives and tables')
    add('--saves', type=Path, default=Path('saves'), help='folder of the weights (default: %(default)s)')
    add('--davis_path', type=Path, default=Path('../DAVIS/2017'), help='folder of DAVIS 2017 (default: %(default)s)')
    add('--yv_path', type=Path, default=Path('../YouTube'), help='folder of YouTubeVOS 2019 (default: %(default)s)')
    add('--flags', nargs=argparse.REMAINDER, default=[], help='further flags of the evaluation script; must come last')
    args = parser.parse_args(argv)

    good = True
    for which in args.table:
        text, all_good = reproduce(which, args)
        good = good and all_good
        with atomic_path(args.output / f'table{which}.md') as temporary:
            temporary.write_text(text)
        print(text)
    return 0 if good else 1


if __name__ == '__main__':
    run_main(main)
