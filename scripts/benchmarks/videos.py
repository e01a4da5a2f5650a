"""The flags of benchmarks that segment videos with ground truth."""

import argparse
from pathlib import Path

from scripts.flags import add_inference_flags


def video_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags for inference and for the videos, which ``find_videos`` then finds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--images', required=True, type=Path, help='folder with a folder of frames for each video')
    add('--annotations', required=True, type=Path, help='folder with a folder of ground-truth masks for each video')
    add('--video', nargs='+', metavar='NAME', help='names of the videos (default: all in --annotations)')
    add_inference_flags(parser, model=None, size=[480])
    return parser


def find_videos(args: argparse.Namespace) -> dict[str, tuple[Path, Path]]:
    """Name -> the folder of its frames and that of its masks, of the videos that the flags name."""
    names = args.video or sorted(path.name for path in args.annotations.iterdir() if path.is_dir())
    return {name: (args.images / name, args.annotations / name) for name in names}
