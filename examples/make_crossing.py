"""How the clip ``crossing`` was made: the rider of DAVIS's horsejump-low passes in front of its black swan.

python examples/make_crossing.py ../DAVIS/2017/trainval examples/crossing
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.io import list_frames, read_image, read_mask, write_mask

FRAMES, WIDTH, HEIGHT = 40, 456, 256
SCALE = 0.55  # of the rider
START, END = 0.82, 0.10  # its centre, as a fraction of the width
FLOOR = 0.92  # its lowest pixel, as a fraction of the height


def main() -> None:
    davis, output = Path(sys.argv[1]), Path(sys.argv[2])
    swan, rider = (
        [
            (read_image(path), read_mask(davis / 'Annotations/480p' / name / f'{path.stem}.png'))
            for path in list_frames(davis / 'JPEGImages/480p' / name)[:FRAMES]
        ]
        for name in ('blackswan', 'horsejump-low')
    )
    rider = [(np.fliplr(image), np.fliplr(mask)) for image, mask in rider]  # so that it rides forward
    for t in range(FRAMES):
        image = cv2.resize(swan[t][0], (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        labels = cv2.resize(swan[t][1], (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
        ys, xs = np.nonzero(rider[t][1])
        x = WIDTH * (START + (END - START) * t / (FRAMES - 1)) - SCALE * xs.mean()
        matrix = np.array([[SCALE, 0, x], [0, SCALE, HEIGHT * FLOOR - SCALE * ys.max()]])
        above = cv2.warpAffine(rider[t][0], matrix, (WIDTH, HEIGHT))
        inside = cv2.warpAffine(rider[t][1].astype(np.float32), matrix, (WIDTH, HEIGHT))[..., None]
        image = (image + inside * (above.astype(np.float32) - image)).round().astype(np.uint8)
        labels = np.where(inside[..., 0] > 0.5, 2, labels).astype(np.uint8)
        frame = output / 'JPEGImages' / f'{t:05d}.jpg'
        frame.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(frame, quality=90)
        write_mask(output / 'truth' / 'Annotations' / f'{t:05d}.png', labels)
        if t == 0:
            write_mask(output / 'Annotations' / f'{t:05d}.png', labels)


if __name__ == '__main__':
    main()
