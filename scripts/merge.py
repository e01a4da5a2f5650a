"""Make the masks of an ensemble whose networks ran separately, from the probabilities that the runs have saved.

    python eval_davis.py --model a.pth --output ../results/a --save_probs      # wherever there is a GPU
    python eval_davis.py --model b.pth --output ../results/b --save_probs
    python scripts/merge.py ../results/a ../results/b --output ../results/ab

Every run has the same weight. The masks are those of '--model a.pth b.pth', where each network also has its own
memory; only pixels with nearly equal probabilities may differ, since the files are rounded to float16. Runs with
--flip or several --size are averages themselves; combine only runs that average the same number of results.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import run_main


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        'results',
        nargs='+',
        type=Path,
        metavar='RESULTS',
        help='output folders of runs with --save_probs; all need the same frames and objects',
    )
    add('--output', type=Path, required=True, help='folder for the masks; a second run with it continues the first')
    add('--zip', action='store_true', help='also write OUTPUT.zip, an archive for the evaluation server')
    add('--overwrite', action='store_true', help='merge finished frames again')
    args = parser.parse_args(argv)
    if len(args.results) < 2:
        parser.error('expected two RESULTS or more to average')

    from inference.merge import merge

    count = merge(args.results, args.output, overwrite=args.overwrite, archive=args.zip)
    print(f'frames: {count} merged of {len(args.results)} runs each')
    return 0


if __name__ == '__main__':
    run_main(main)
