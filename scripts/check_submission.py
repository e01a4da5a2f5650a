"""Check whether an evaluation server would accept masks, before one of the few submissions is used up.

    python scripts/check_submission.py ../results/d17-td.zip --dataset davis2017 --split testdev --root ../DAVIS/2017
    python scripts/check_submission.py ../results/y19 --dataset youtube --root ../YouTube

It finds missing and superfluous videos and frames, masks of a wrong size or format, labels that the first masks do
not have, a wrong layout, and in an archive also other files. It prints a line with examples for each cause. The exit
status is 1 if it finds anything.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.davis import davis
from dataset.folder import folder
from dataset.youtube import youtube
from util.cli import run_main

DATASETS = {
    'davis2016': lambda root, split: davis(root, year=2016, split=split or 'val'),
    'davis2017': lambda root, split: davis(root, year=2017, split=split or 'val'),
    'youtube': lambda root, split: youtube(root, split=split or 'valid'),
    'folder': lambda root, split: folder(root, first_only=True),
}
"""The reader of each data set: root and split -> videos to segment."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('masks', type=Path, metavar='FOLDER_OR_ZIP', help='output folder of an evaluation script, or its archive')
    add(
        '--dataset',
        choices=list(DATASETS),
        required=True,
        help='data set. folder: ROOT/JPEGImages/<video> and ROOT/Annotations/<video>, as MOSE and LVOS have them',
    )
    add('--root', type=Path, required=True, help='folder of the data set, as for the script that wrote the masks')
    add('--split', help='split of the data set (default: val for DAVIS, valid for youtube)')
    args = parser.parse_args(argv)

    from inference.submission import check_submission

    videos = DATASETS[args.dataset](args.root, args.split)
    causes = check_submission(args.masks, videos)
    for cause in causes:
        print(cause)
    if not causes:
        frames = sum(frame.wanted for video in videos for frame in video.frames)
        print(f'no problems found in {frames} masks of {len(videos)} videos')
    return 1 if causes else 0


if __name__ == '__main__':
    run_main(main)
