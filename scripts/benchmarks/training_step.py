"""Measure the parts of a training step: waiting for data, forward, backward and optimizer.

    python scripts/benchmarks/training_step.py --static_root ../static --crop_size 192 --batch_size 4

Two loops take turns: this repository's loop (weights in channels_last, fused Adam, features that objects share are
convolved once) and a plain one (the formulation of scripts/benchmarks/baseline.py, contiguous weights, default Adam).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from model import VARIANTS
from util.cli import HelpFormatter, positive, run_main


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0], formatter_class=HelpFormatter)
    add = parser.add_argument
    add('--static_root', required=True, help='folder of image and mask pairs, from which clips are composed')
    add('--arch', default='stcn', help='network variant, with random weights')
    add('--crop_size', type=positive, default=384, help='side of a training frame in pixels')
    add('--batch_size', type=positive, default=4, help='samples in a batch')
    add('--num_workers', type=int, default=1, help='processes that load data')
    add('--steps', type=positive, default=5, help='steps of each loop; the median counts')
    add('--amp_dtype', choices=('float16', 'bfloat16'), help='type of mixed precision (default: none, float32)')
    add('--recompute', action='store_true', help='use train.py --recompute in our loop')
    add('--compile', action='store_true', help='use train.py --compile in our loop')
    add('--device', help='device to measure, e.g. cuda:1 or cpu (default: the GPU, if there is one)')
    args = parser.parse_args(argv)
    if args.arch not in VARIANTS:
        parser.error(f'--arch: expected one of {", ".join(VARIANTS)}, found {args.arch}')

    from scripts.benchmarks import training_loops  # it imports torch, which --help need not wait for

    seconds = training_loops.measure(
        args.arch,
        static_root=args.static_root,
        crop_size=args.crop_size,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        steps=args.steps,
        amp_dtype=args.amp_dtype,
        recompute=args.recompute,
        compiled=args.compile,
        device_name=args.device,
    )
    training_loops.print_table(seconds)
    return 0


if __name__ == '__main__':
    run_main(main)
