"""Segment videos of one's own: frames in JPEGImages, masks of some of them in Annotations."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.evaluation import evaluate, evaluation_parser, parse
from util.cli import run_main


def main() -> int:
    parser = evaluation_parser(__doc__, size=480, dataset='folder')
    parser.add_argument(
        '--root', required=True, help='with JPEGImages/VIDEO/ and Annotations/VIDEO/, or both without VIDEO/'
    )
    args = parse(parser)

    from dataset.folder import folder

    return evaluate(args, folder(args.root), {'root': os.path.realpath(args.root)})


if __name__ == '__main__':
    run_main(main)
