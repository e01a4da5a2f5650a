"""Measure training samples a second on one core: this project's datasets against a sequence of torchvision transforms.

    python scripts/benchmarks/loader.py --static_root ../static --davis_root ../DAVIS

The usual pipeline decodes with PIL, then zooms, flips, jitters, rotates, resizes and crops one after the other,
with the same ranges, and seeds the global generator twice to treat a mask like its image. Both pipelines read the
same files, take turns, and use one thread. Times are CPU seconds, so that other work on the machine hardly matters.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from util.cli import run_main


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.partition('\n')[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--static_root', type=Path, default='../static', help='folder of static images')
    parser.add_argument(
        '--davis_root', type=Path, default='../DAVIS', help='folder of DAVIS; its 480p videos are read'
    )
    parser.add_argument('--cache_stills', metavar='FOLDER', help='cache for decoded static images, as for train.py')
    parser.add_argument('--crop_size', type=int, default=384, help='side of a frame in pixels')
    parser.add_argument('--count', type=int, default=100, help='number of samples for each line')
    args = parser.parse_args(argv)

    from scripts.benchmarks import loader_pipelines  # it imports torch, which --help need not wait for

    loader_pipelines.start()
    if args.static_root.is_dir():
        loader_pipelines.compare_static(
            args.static_root, size=args.crop_size, count=args.count, cache_stills=args.cache_stills
        )
    loader_pipelines.compare_davis(args.davis_root, size=args.crop_size, count=args.count)
    return 0


if __name__ == '__main__':
    run_main(main)
