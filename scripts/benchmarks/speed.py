"""Measure speed and memory of the network and the core; the things to compare are measured in one run.

    python scripts/benchmarks/speed.py --objects 1 3 --memory_frames 20
    python scripts/benchmarks/speed.py --measure video --size 240x432 --video_frames 60 300
    python scripts/benchmarks/speed.py --measure cost video --arch stcn stcn_light --size 480x854 240x432
    python scripts/benchmarks/speed.py --measure growth --size 240x432 --memory_frames 1 20 200 2000 --plot growth.png

cost    parameters, and multiply-adds of key encoder, value encoder, decoder and a whole frame
stages  multiply-adds, bytes and time of key encoder, value encoder, memory read and decoder, and the time attainable
        at the rates that the machine reaches in a matrix product and a copy
read    the sparse read against the dense read of the straightforward formulation (scripts/benchmarks/baseline.py)
core    the whole core with a filled memory against the straightforward formulation, in float32
video   the whole core over a clip: FPS, and peak memory with and without the memory bank
growth  milliseconds of a frame and MiB of the memory as the memory frames and the objects grow
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from model import VARIANTS
from scripts.flags import add_inference_flag, inference_config, parse_flags
from scripts.plots import import_pyplot
from util.cli import HelpFormatter, positive, run_main
from util.files import atomic_path, check_writable

MEASURES = ('cost', 'stages', 'read', 'core', 'video', 'growth')
"""The names of the measurements: ``measure_NAME`` in ``scripts/benchmarks/measures.py``."""


def speed_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add(
        '--measure',
        nargs='+',
        choices=MEASURES,
        default=['cost', 'stages', 'read', 'core', 'video'],
        help='measurements to run',
    )
    add('--arch', nargs='+', default=['stcn'], help='network variants, with random weights')
    add('--model', help='checkpoint file to measure in place of --arch')
    add('--size', type=size, nargs='+', default=[(480, 854)], help='HEIGHTxWIDTH of a frame; 480x854 by default')
    add('--objects', type=positive, nargs='+', default=[1, 3], help='numbers of objects')
    add('--memory_frames', type=positive, nargs='+', default=[20], help='numbers of memory frames')
    add('--video_frames', type=positive, nargs='+', default=[20], help='numbers of frames in the clip')
    for name in ('top', 'include_last', 'mem_every', 'max_memory_frames'):
        add_inference_flag(parser, name)
    add(
        '--precision',
        choices=('float32', 'tf32', 'amp'),
        default='float32',
        help='precision of encoders and decoder; tf32: float32 whose products a GPU rounds more',
    )
    add('--device', help='device to measure, e.g. cuda:1 or cpu (default: the GPU, if there is one)')
    add(
        '--repeat', type=positive, default=5, help='repetitions of each measurement, taken in turns; the median counts'
    )
    add('--json', help='file to which the numbers are written')
    add('--plot', help='PNG file to which a plot of growth is written')
    return parser


def size(text: str) -> tuple[int, int]:
    height, _, width = text.partition('x')
    return positive(height), positive(width)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_flags(speed_parser(), argv=argv)
    if args.json:
        check_writable(args.json)
    if args.plot:
        check_writable(args.plot)
        import_pyplot()
    for name in [] if args.model else args.arch:
        if name not in VARIANTS:
            raise SystemExit(f'error: --arch: expected some of {", ".join(VARIANTS)}, found {name!r}')

    # These import torch, which --help and errors in the command line need not wait for.
    import torch

    from scripts.benchmarks import harness, measures

    case = harness.Case(
        is_file=args.model is not None,
        objects=args.objects,
        memory_frames=args.memory_frames,
        video_frames=args.video_frames,
        config=replace(inference_config(args), amp=args.precision == 'amp'),
        precision=args.precision,
        device_name=args.device,
        repeat=args.repeat,
    )
    result = {'machine': harness.machine(case.device), 'precision': args.precision}
    for name in args.measure:
        measure = getattr(measures, f'measure_{name}')
        result[name] = []
        for frame, network in itertools.product(args.size, [args.model] if args.model else args.arch):
            rows = measure(replace(case, network=network, size=frame))
            result[name] += [{'network': network, 'size': '{} x {}'.format(*frame), **row} for row in rows]
    print(f'{result["machine"]}, {args.precision}, torch {torch.__version__}')
    for name in args.measure:
        print_table(name, result[name])
    if args.plot and 'growth' in result:
        plot_growth(result['growth'], args.plot)
    if args.json:
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + '\n')
    return 0


def plot_growth(rows: list[dict], path: str) -> None:
    """Plot time and memory over memory frames (with one object) and over objects."""
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout='constrained')
    alone = [row for row in rows if row['objects'] == 1]
    shortest = min(row['memory frames'] for row in rows)
    together = [row for row in rows if row['memory frames'] == shortest]
    for axis, chosen, variable in ((axes[0], alone, 'memory frames'), (axes[1], together, 'objects')):
        for column, marker in (('frame (ms)', 'o'), ('read (ms)', 's'), ('bank (MiB)', '^')):
            axis.plot([row[variable] for row in chosen], [row[column] for row in chosen], marker=marker, label=column)
        axis.set(xlabel=variable, xscale='log', yscale='log')
        axis.grid(alpha=0.3)
    axes[0].set_title('1 object')
    axes[1].set_title(f'{shortest} memory frame{"s" * (shortest > 1)}')
    axes[0].legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format='png', dpi=120)
    pyplot.close(figure)


def print_table(name: str, rows: list[dict]) -> None:
    """Print a table as Markdown."""
    if not rows:
        return
    print(f'\n{name}\n\n| {" | ".join(rows[0])} |\n|{"---:|" * len(rows[0])}')
    for row in rows:
        print(f'| {" | ".join(map(cell, row.values()))} |')


def cell(value: object) -> str:
    if isinstance(value, float):
        return f'{value:.3g}' if value < 100 else f'{value:.0f}'
    return str(value)


if __name__ == '__main__':
    run_main(main)
