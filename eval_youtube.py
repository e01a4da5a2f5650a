"""Segment YouTubeVOS 2018 or 2019 and write masks that its server takes."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scripts.evaluation import evaluation_parser, parse, report, segment_videos
from util.cli import run_main

if TYPE_CHECKING:
    from inference.run import Summary


def main(argv: Sequence[str] | None = None) -> int:
    return report(run(argv))


def run(argv: Sequence[str] | None) -> 'Summary':
    """Segment what the command line asks for. ``scripts/runs.py`` calls this function for a row of a table."""
    parser = evaluation_parser(__doc__, size=480, dataset='youtube')
    parser.add_argument(
        '--yv_path',
        default='../YouTube',
        help='folder of the dataset, which has SPLIT/ and all_frames/SPLIT_all_frames/; for 2018: ../YouTube2018',
    )
    parser.add_argument(
        '--split', choices=('valid', 'test'), default='valid', help='videos of the validation set or of the test set'
    )
    parser.add_argument(
        '--output_all', action='store_true', help='write every frame, not only those that the server asks for'
    )
    args = parse(parser, argv)

    from dataset.youtube import youtube

    which = {'yv_path': os.path.realpath(args.yv_path), 'split': args.split, 'output_all': args.output_all}
    videos = youtube(args.yv_path, split=args.split, output_all=args.output_all)
    return segment_videos(args, videos, which, server=not args.output_all)


if __name__ == '__main__':
    run_main(main)
