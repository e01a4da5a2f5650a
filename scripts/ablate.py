"""Run a grid of networks, memory schedules and top-k on DAVIS; write a table, and a plot of J&F against speed.

    python scripts/ablate.py --root ../DAVIS/2017 --year 2016 --output ../results/ablation \\
        --networks 'STCN, L2=saves/stcn.pth' 'STM, dot=saves/stm.pth' --schedules every5+last every5 first --top 20 0

Every row is a run of eval_davis.py, which is then scored; the table has its command. To continue after an
interruption, run the same command again. Writes table.md, table.csv and plot.png to the output folder.

A schedule is every<N> (every N-th frame goes into the memory) or first (only the annotated frame does); +last adds
the previous frame. A network is NAME=FILE; its architecture and similarity are in the file.
"""

import argparse
import csv
import io
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.davis import davis_truth
from scripts.flags import FLAGS, add_inference_flag
from scripts.plots import import_pyplot
from scripts.runs import Measurement, measure
from util.cli import run_main
from util.files import atomic_path

MARKERS = 'osD^v<>Pp*hX'
COLUMNS = {
    'network': 'network',
    'schedule': 'memory',
    'top': 'top-k',
    'jf': 'J&F',
    'j': 'J',
    'f': 'F',
    'fps': 'FPS',
    'peak': 'peak MiB',
}


@dataclass(frozen=True)
class Row:
    """A finished run. A ``top`` of 0 means that the whole memory is read."""

    network: str
    schedule: str
    top: int
    measured: Measurement


def network(text: str) -> tuple[str, Path]:
    name, separator, path = text.rpartition('=')
    if not separator or not name:
        raise argparse.ArgumentTypeError(f'expected NAME=FILE, found {text!r}')
    if not Path(path).is_file():
        raise argparse.ArgumentTypeError(f'{path}: no such checkpoint file')
    return name, Path(path)


def schedule(text: str) -> str:
    if not re.fullmatch(r'(every[1-9]\d*|first)(\+last)?', text):
        raise argparse.ArgumentTypeError(f'expected every<N> or first, with or without +last, found {text!r}')
    return text


def schedule_flags(text: str) -> list[str]:
    """The flags of the evaluation scripts for a schedule. ``--mem_every 0`` memorises only annotated frames."""
    memory, _, last = text.partition('+')
    every = '0' if memory == 'first' else memory.removeprefix('every')
    return ['--mem_every', every, '--include_last' if last else '--no_include_last']  # whatever a network recommends


def run_cell(args: argparse.Namespace, name: str, path: Path, memory: str, top: int) -> Row:
    """Run a cell of the grid, or take it from an earlier run of the same command."""
    folder = args.output / re.sub(r'[^\w.+-]+', '_', f'{name}-{memory}-top{top}')
    arguments = [
        '--model',
        str(path),
        '--davis_path',
        str(args.root),
        '--year',
        str(args.year),
        *schedule_flags(memory),
        '--top',
        str(top),
        '--size',
        str(args.size),
    ]
    truths = partial(davis_truth, args.root, year=args.year)
    return Row(name, memory, top, measure('eval_davis.py', arguments, folder, flags=args.flags, truths=truths))


def cells(row: Row) -> list[str]:
    values = asdict(row.measured) | {'network': row.network, 'schedule': row.schedule, 'top': row.top or 'all'}
    digits = {'jf': 1, 'j': 1, 'f': 1, 'fps': 2, 'peak': 0}
    return [f'{values[name]:.{digits[name]}f}' if name in digits else str(values[name]) for name in COLUMNS]


def markdown(rows: list[Row]) -> str:
    lines = [
        '| ' + ' | '.join([*COLUMNS.values(), 'command']) + ' |',
        '|---|---|' + '---:|' * (len(COLUMNS) - 2) + '---|',
    ]
    lines += ['| ' + ' | '.join([*cells(row), f'`{row.measured.command}`']) + ' |' for row in rows]
    return '\n'.join(lines) + '\n'


def comma_separated(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*COLUMNS.values(), 'command'])
    writer.writerows([*cells(row), row.measured.command] for row in rows)
    return text.getvalue()


def plot(rows: list[Row], path: Path) -> None:
    """Plot J&F against FPS, with a colour for each network and a marker for each schedule and top-k."""
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout='constrained')
    names = list(dict.fromkeys(row.network for row in rows))
    settings = list(dict.fromkeys((row.schedule, row.top) for row in rows))
    for row in rows:
        marker = MARKERS[settings.index((row.schedule, row.top)) % len(MARKERS)]
        axes.scatter(row.measured.fps, row.measured.jf, color=f'C{names.index(row.network)}', marker=marker)
    handles = [axes.scatter([], [], color=f'C{index}', label=name) for index, name in enumerate(names)]
    handles += [
        axes.scatter([], [], color='gray', marker=MARKERS[index % len(MARKERS)], label=f'{memory}, top {top or "all"}')
        for index, (memory, top) in enumerate(settings)
    ]
    axes.set(xlabel='FPS (propagation)', ylabel='J&F')
    axes.grid(alpha=0.3)
    axes.legend(handles=handles, fontsize='small')
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format='png', dpi=120)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--networks', nargs='+', type=network, required=True, metavar='NAME=FILE', help='checkpoint files')
    add(
        '--schedules',
        nargs='+',
        type=schedule,
        default=['every5+last', 'every5'],
        help='schedules of the memory (default: every5+last every5, as in Table 1)',
    )
    add_inference_flag(parser, 'top', nargs='+', default=[20], help=f'{FLAGS["top"].help} (default: 20)')
    add('--root', type=Path, required=True, help='folder of DAVIS, as for eval_davis.py --davis_path')
    add('--year', type=int, choices=(2016, 2017), default=2017, help='year of DAVIS (default: 2017)')
    add_inference_flag(
        parser,
        'size',
        nargs=None,
        default=0,
        help='shorter side in pixels; 0 keeps the size of the frames (default: 0)',
    )
    add('--flags', nargs=argparse.REMAINDER, default=[], help='further flags of eval_davis.py; must come last')
    add('--output', type=Path, required=True, help='folder for masks, table and plot')
    args = parser.parse_args(argv)
    import_pyplot()

    rows = [
        run_cell(args, name, path, memory, top)
        for (name, path), memory, top in itertools.product(args.networks, args.schedules, args.top)
    ]
    for name, content in (('table.md', markdown(rows)), ('table.csv', comma_separated(rows))):
        with atomic_path(args.output / name) as temporary:
            temporary.write_text(content)
    plot(rows, args.output / 'plot.png')
    print(markdown(rows), end='')
    return 0


if __name__ == '__main__':
    run_main(main)
