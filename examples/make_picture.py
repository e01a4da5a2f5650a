"""Makes a picture like that of the README: frames of a clip, and below them the same frames with their masks.

python examples/make_picture.py examples/crossing/JPEGImages output/crossing/masks output/objects.jpg
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

COLUMNS, WIDTH, GAP = 4, 320, 6


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', type=Path, help='folder of the frames')
    parser.add_argument('masks', type=Path, help='folder of the masks, named like the frames')
    parser.add_argument('output', type=Path, help='the picture')
    args = parser.parse_args(argv)

    import numpy as np
    from PIL import Image

    from dataset.io import list_frames, read_image, read_mask
    from dataset.overlay import draw_masks

    frames = list_frames(args.images)
    parts = []
    for number in np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int):
        image, labels = read_image(frames[number]), read_mask(args.masks / f'{frames[number].stem}.png')
        above, below = (
            np.asarray(Image.fromarray(each).resize((WIDTH, round(WIDTH * image.shape[0] / image.shape[1]))))
            for each in (image, draw_masks(image, labels))
        )
        column = np.concatenate([above, np.full((GAP, WIDTH, 3), 255, np.uint8), below])
        parts += [column, np.full((len(column), GAP, 3), 255, np.uint8)]
    Image.fromarray(np.concatenate(parts[:-1], axis=1)).save(args.output, quality=88)


if __name__ == '__main__':
    main()
