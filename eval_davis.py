"""Segment DAVIS 2016 or 2017 and write masks that its server and toolkits take."""

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
    parser = evaluation_parser(__doc__, size=0, dataset='davis')
    parser.add_argument(
        '--year',
        type=int,
        choices=(2016, 2017),
        default=2017,
        help='2016: all non-zero labels are one object',
    )
    parser.add_argument(
        '--davis_path',
        default='../DAVIS/<year>',
        help='folder of the dataset: 2017 has trainval/ and test-dev/, 2016 has JPEGImages/ and Annotations/. '
        'For --year 2016, a folder of 2017 can be used, too',
    )
    parser.add_argument(
        '--split', choices=('val', 'testdev'), default='val', help='videos of the validation set or of test-dev'
    )
    args = parse(parser, argv)

    from dataset.davis import davis

    args.davis_path = args.davis_path.replace('<year>', str(args.year))
    which = {'year': args.year, 'davis_path': os.path.realpath(args.davis_path), 'split': args.split}
    videos = davis(args.davis_path, year=args.year, split=args.split)
    return segment_videos(args, videos, which, server=args.split == 'testdev')


if __name__ == '__main__':
    run_main(main)
