"""Plot the loss and the IoU of training runs. Runs are joined one after the other, so a chain of stages is one curve.

python scripts/plot_training.py saves/light_s0 saves/light_s01 saves/light_s012 --output curve.png
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.plots import import_pyplot
from util.cli import run_main
from util.files import atomic_path

CURVES = {'train/loss': 'loss', 'train/iou_1': 'IoU of object 1', 'train/iou_2': 'IoU of object 2'}


def read_curves(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Read the iterations and values of each curve from a run's TensorBoard events.

    Raises:
        FileNotFoundError: the run has no such events.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger('tensorboard').setLevel(logging.WARNING)
    events = EventAccumulator(str(run)).Reload()
    there = [name for name in CURVES if name in events.Tags()['scalars']]
    if not there:
        raise FileNotFoundError(f'{run}: expected the folder of a run with TensorBoard events, found none')
    return {
        name: ([event.step for event in events.Scalars(name)], [event.value for event in events.Scalars(name)])
        for name in there
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'runs', nargs='+', type=Path, help='folders of the runs in saves/, in the order of the training'
    )
    parser.add_argument('--output', type=Path, default='curve.png', help='image file (default: %(default)s)')
    args = parser.parse_args(argv)

    pyplot = import_pyplot()
    figure, (loss, overlap) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5), layout='constrained')
    start = 0
    for run in args.runs:
        curves = read_curves(run)
        for number, (name, label) in enumerate(CURVES.items()):
            if name in curves:
                steps, values = curves[name]
                axes = loss if name == 'train/loss' else overlap
                axes.plot(
                    [start + step for step in steps],
                    values,
                    color=f'C{number}',
                    label=label if run == args.runs[-1] else None,
                )
        loss.annotate(
            run.name,
            (start, 1),
            xycoords=('data', 'axes fraction'),
            xytext=(3, -10),
            textcoords='offset points',
            fontsize='small',
        )
        for axes in (loss, overlap):
            axes.axvline(start, color='gray', linewidth=0.5)
        start += max(steps[-1] for steps, _ in curves.values())
    loss.set(ylabel='loss')
    overlap.set(ylabel='IoU', xlabel='iterations', ylim=(0, 1))
    overlap.legend(fontsize='small', loc='lower right')
    with atomic_path(args.output) as temporary:
        figure.savefig(temporary, format='png', dpi=100)
    return 0


if __name__ == '__main__':
    run_main(main)
