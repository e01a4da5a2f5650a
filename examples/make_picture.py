"""Makes a picture like that of the README: frames of a clip, and below them the same frames with their masks.

python examples/make_picture.py examples/crossing/JPEGImages output/crossing/masks output/objects.jpg

With --truth, the upper row shows the masks of this folder, so that one sees where the others are wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WIDTH, GAP = 320, 6


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', type=Path, help='folder of the frames')
    parser.add_argument('masks', type=Path, help='folder of the masks, named like the frames')
    parser.add_argument('output', type=Path, help='the picture')
    parser.add_argument('--truth', type=Path, help='folder of masks for the upper row (default: frames without masks)')
    parser.add_argument('--columns', type=int, default=4, help='number of frames (default: 4)')
    args = parser.parse_args(argv)

    import numpy as np
    from PIL import Image

    from dataset.io import list_frames, read_image, read_mask
    from dataset.overlay import draw_masks

    frames = list_frames(args.images)
    parts = []
    for number in np.linspace(0, len(frames) - 1, args.columns).round().astype(int):
        image, name = read_image(frames[number]), f'{frames[number].stem}.png'
        shown = [draw_masks(image, read_mask(each / name)) if each else image for each in (args.truth, args.masks)]
        size = (WIDTH, round(WIDTH * image.shape[0] / image.shape[1]))
        above, below = (np.asarray(Image.fromarray(row).resize(size)) for row in shown)
        column = np.concatenate([above, np.full((GAP, WIDTH, 3), 255, np.uint8), below])
        parts += [column, np.full((len(column), GAP, 3), 255, np.uint8)]
    Image.fromarray(np.concatenate(parts[:-1], axis=1)).save(args.output, quality=88)


if __name__ == '__main__':
    main()
