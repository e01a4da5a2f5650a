"""Make the reduced copies of data sets that training reads.

    python scripts/convert.py youtube --root ../YouTube     train -> train_480p: shorter side 480
    python scripts/convert.py static --root ../static       BIG, HRSOD -> BIG_small, HRSOD_small: longer side 512
    python scripts/convert.py stills --root ../DAVIS --output ../static/DAVIS_stills

Images are reduced by area averaging and saved as JPEGs of quality 95. Masks of videos are reduced by nearest neighbour
and keep their labels and palette; masks of static images are averaged like the images, so that thin parts stay. Files
that are small enough are copied byte for byte. Stills are image and mask pairs of every tenth frame of DAVIS's
training videos, one for each object; use them for stage 0 and for synthetic clips if you have few other images. After
an interruption run the same command again: finished files are kept.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import positive, run_main


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('dataset', choices=['youtube', 'static', 'stills'], help='which copies to make')
    parser.add_argument(
        '--root', type=Path, help='folder of the data set (default: ../YouTube, ../static or ../DAVIS)'
    )
    parser.add_argument('--output', type=Path, help='folder for the stills')
    parser.add_argument(
        '--every', type=positive, default=10, help='take a still every so many frames (default: %(default)s)'
    )
    parser.add_argument(
        '--hold_aside', nargs='+', default=[], metavar='VIDEO', help='videos to leave out, as for train.py'
    )
    parser.add_argument(
        '--num_workers', type=positive, default=os.cpu_count(), help='number of processes (default: one per core)'
    )
    args = parser.parse_args(argv)
    if args.dataset == 'stills' and args.output is None:
        parser.error('stills: --output is needed')

    from scripts import conversions  # it imports cv2, which --help need not wait for

    if args.dataset == 'youtube':
        jobs = conversions.youtube_jobs(args.root or Path('../YouTube'))
    elif args.dataset == 'static':
        jobs = conversions.static_jobs(args.root or Path('../static'))
    else:
        jobs = conversions.stills_jobs(
            args.root or Path('../DAVIS'), args.output, every=args.every, hold_aside=args.hold_aside
        )
    total = conversions.run_all(jobs, num_workers=args.num_workers)
    print(f'{total.written} images converted, {total.skipped} existed already, {len(total.problems)} problems')
    return 1 if total.problems else 0


if __name__ == '__main__':
    run_main(main)
