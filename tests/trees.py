"""Small trees of training data in the published layouts."""

from pathlib import Path

import numpy as np
from PIL import Image

from dataset.io import PALETTE, read_image
from dataset.video import read_split
from tests.conftest import GOLDEN


def write(path, array, *, palette=False, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image.putpalette(PALETTE.tobytes())
    image.save(path, **options)
    return path


def write_pair(folder, name, *, size=(90, 120)):
    """A real image and an elliptic object in its middle."""
    image = Image.fromarray(read_image(GOLDEN / 'clip' / '00000.png')).resize(size[::-1])
    y, x = np.mgrid[: size[0], : size[1]]
    inside = ((y / size[0] - 0.5) ** 2 + (x / size[1] - 0.5) ** 2) < 0.12
    write(folder / f'{name}.jpg', np.array(image), quality=95)
    return write(folder / f'{name}.png', (255 * inside).astype(np.uint8))


def write_video(images, annotations, name, *, frames=8, step=1, labels=(1, 4, 7), size=(100, 140)):
    """Squares that move right by a pixel a frame, labelled as given, in gray squares of level 20 x label."""
    for t in range(0, frames * step, step):
        mask = np.zeros(size, np.uint8)
        for k, label in enumerate(labels):
            mask[20:70, 5 + 40 * k + t % 10 : 40 + 40 * k + t % 10] = label
        write(images / name / f'{t:05d}.jpg', np.stack([20 * mask] * 3, axis=-1), quality=95)
        write(annotations / name / f'{t:05d}.png', mask, palette=True)


def make_davis(root: Path, *names: str, frames: int = 4) -> None:
    """A root with these validation videos, two objects each."""
    base = root / 'trainval'
    for name in names:
        write_video(base / 'JPEGImages' / '480p', base / 'Annotations' / '480p', name, frames=frames, labels=(1, 2))
    (base / 'ImageSets' / '2017').mkdir(parents=True)
    (base / 'ImageSets' / '2017' / 'val.txt').write_text('\n'.join(names))


def make_roots(folder: Path) -> dict[str, Path]:
    """All training data in miniature, and a validation video of DAVIS; the roots by the name of their flag."""
    for place in ('fss/cat', 'fss/dog', 'DUTS-TR', 'BIG_small'):
        write_pair(folder / 'static' / place, '1')
    bl30k, youtube = folder / 'BL30K', folder / 'YouTube' / 'train_480p'
    davis = folder / 'DAVIS' / '2017' / 'trainval'
    for name in ('0', '1', '2'):
        write_video(bl30k / 'JPEGImages', bl30k / 'Annotations', name)
    for name in read_split('youtube_vos_train')[:2]:
        write_video(youtube / 'JPEGImages', youtube / 'Annotations', name, step=5)
    for name in ('bear', 'blackswan'):  # one of the training and one of the validation set
        write_video(davis / 'JPEGImages' / '480p', davis / 'Annotations' / '480p', name)
    (davis / 'ImageSets' / '2017').mkdir(parents=True)
    (davis / 'ImageSets' / '2017' / 'val.txt').write_text('blackswan\n')
    return {
        'static_root': folder / 'static',
        'bl_root': bl30k,
        'yv_root': folder / 'YouTube',
        'davis_root': folder / 'DAVIS',
    }
