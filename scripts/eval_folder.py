"""Segment your own videos, with frames in JPEGImages and masks of some of them in Annotations."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from inference.sources import DIRECTIONS
from scripts.evaluation import evaluation_parser, parse, report, segment_videos
from util.cli import run_main, sha256
from util.ranks import rank

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    parser = evaluation_parser(__doc__, size=480, dataset='folder')
    parser.add_argument(
        '--root',
        required=True,
        help='folder with JPEGImages/VIDEO/ and Annotations/VIDEO/; for a single video VIDEO/ may be left out',
    )
    parser.add_argument(
        '--first_only',
        action='store_true',
        help='give the network only the first mask of each object (with --direction backward: the last one), so that '
        'the other masks can be scored',
    )
    parser.add_argument(
        '--direction',
        choices=DIRECTIONS,
        default='forward',
        help='forward: from the first mask of a video to its end; backward: from the last mask to its beginning; '
        'both: all frames (default: forward)',
    )
    args = parse(parser, argv)

    from dataset.folder import folder

    videos = folder(args.root, first_only=args.first_only, direction=args.direction)
    given = {video.name: video.given for video in videos}
    if rank() == 0:
        frames, all_frames = sum(map(len, given.values())), sum(len(video.frames) for video in videos)
        log.info('given to the network, and therefore not scored: the masks of %d of %d frames', frames, all_frames)
        if left := sum(not frame.wanted for video in videos for frame in video.frames):
            beyond = 'after the last mask' if args.direction == 'backward' else 'before the first mask'
            log.info('%d frames %s of their video stay empty; --direction both segments them, too', left, beyond)
    masks = [path for video in videos for path in video.mask_files]
    files = {os.path.relpath(path, args.root): sha256(path) for path in masks}
    dataset = {'root': os.path.realpath(args.root), 'given': given, 'files': files}
    return report(segment_videos(args, videos, dataset, direction=args.direction))


if __name__ == '__main__':
    run_main(main)
