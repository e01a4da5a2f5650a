"""Masks of an ensemble from the probabilities that its networks have saved, each in a run of its own.

    python eval_davis.py --model a.pth --output ../results/a --save_probs      # wherever there is a GPU
    python eval_davis.py --model b.pth --output ../results/b --save_probs
    python scripts/merge.py ../results/a ../results/b --output ../results/ab

Every run counts the same. Each network has a memory of its own in one process, too, so that the masks are those of
'--model a.pth b.pth' but for pixels that two objects share to the rounding of float16. Runs with --flip or several
--size are means already, and the mean of means of equally many is the mean of all.
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
        help='output folder of a run with --save_probs; all of the same frames and objects',
    )
    add('--output', type=Path, required=True, help='folder for the masks; a second run continues there')
    add('--zip', action='store_true', help='also write OUTPUT.zip, the archive that a server takes')
    add('--overwrite', action='store_true', help='merge again the frames that are finished')
    args = parser.parse_args(argv)
    if len(args.results) < 2:
        parser.error('expected two RESULTS or more to average')

    from inference.merge import merge
    from scripts.flags import naming_flags

    with naming_flags():
        count = merge(args.results, args.output, overwrite=args.overwrite, archive=args.zip)
    print(f'frames: {count} merged of {len(args.results)} runs each')
    return 0


if __name__ == '__main__':
    run_main(main)
