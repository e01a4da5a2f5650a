"""Pre-training clips: three augmented views of one image with one object (stage 0, supplementary F.3.1)."""

import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image

from dataset.augment import FRAMES, Augmentation, draw_static, normalise, recolour
from dataset.io import fit_mask, image_size, open_image, read_image
from dataset.sampling import AddressedDataset
from util.errors import DataError
from util.files import atomic_path

log = logging.getLogger(__name__)

FOLDERS = ('fss', 'DUTS-TR', 'DUTS-TE', 'ecssd', 'BIG_small', 'HRSOD_small')
REPEATS = {'BIG_small': 5, 'HRSOD_small': 5}
"""How often an epoch has each pair of these folders, whose annotations are of higher quality."""


class Pair(NamedTuple):
    """Files of an image and its mask."""

    image: str
    mask: str
    cache_dir: str | None = None
    """The folder that keeps them decoded."""


def find_pairs(root: str | Path, *, cache_dir: str | Path | None = None) -> list[Pair]:
    """All images with masks below ``root``.

    An image N.jpg has its mask N.png beside it, in ``root``, in a folder of ``root`` or, as in fss/<class>, one level
    deeper. Pairs of a folder named in REPEATS are in the list that often. The published folders that are absent and
    the images that have no mask are logged.

    Args:
        cache_dir: folder to keep decoded images and masks in, see ``read_pair``.

    Raises:
        DataError: there is no pair.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            f'{root}: expected a folder of static images, found none. docs/data.md says how to get them',
            options=['static_root', 'synthetic_root'],
        )
    pairs = _pairs_of(root)
    folders = _subfolders(root)
    for folder in folders:
        found = _pairs_of(folder) + [pair for deeper in _subfolders(folder) for pair in _pairs_of(deeper)]
        repeats = REPEATS.get(folder.name, 1)
        log.info('%s: %d image(s)%s', folder, len(found), f', {repeats} times each' if repeats > 1 else '')
        pairs += repeats * found
    absent = [name for name in FOLDERS if name not in {folder.name for folder in folders}]
    if absent:
        log.info('%s: training goes on without %s', root, ', '.join(absent))
    if not pairs:
        raise DataError(
            f'{root}: expected image and mask pairs N.jpg + N.png in its folders ({", ".join(FOLDERS)} or any other), '
            'found none',
            options=['static_root', 'synthetic_root'],
        )
    return [pair._replace(cache_dir=None if cache_dir is None else str(cache_dir)) for pair in pairs]


def _subfolders(folder: Path) -> list[Path]:
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    return [folder / name for name in names if not name.startswith('.') and name != '__MACOSX']


def _pairs_of(folder: Path) -> list[Pair]:
    images, masks = {}, {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in ('.jpg', '.jpeg') and not name.startswith('.'):
            images[stem] = os.path.join(folder, name)
        elif suffix.lower() == '.png':
            masks[stem] = os.path.join(folder, name)
    alone = [path for stem, path in images.items() if stem not in masks]
    if alone:
        names = ', '.join(os.path.basename(path) for path in alone[:3])
        log.warning('%s: skipped %d image(s) without a mask N.png: %s ...', folder, len(alone), names)
    return [Pair(path, masks[stem]) for stem, path in images.items() if stem in masks]


def read_coverage(path: str | Path) -> np.ndarray:
    """Read the mask of one object as uint8 [H, W] from 0 to 255.

    Masks of salient objects are often anti-aliased, and some are stored as 0 and 1 or as a palette's first colour:
    the brightest value of the file is taken as the inside. What is transparent is outside, whatever its colour.
    """
    red, green, blue = cv2.split(read_image(path))
    coverage = cv2.max(cv2.max(red, green), blue)
    with Image.open(path) as header:
        may_be_transparent = 'A' in header.getbands() or 'transparency' in header.info
    if may_be_transparent:
        alpha = np.array(open_image(path).convert('RGBA').getchannel('A'))
        coverage = cv2.multiply(coverage, alpha, scale=1 / 255)
    brightest = int(coverage.max())
    return cv2.convertScaleAbs(coverage, alpha=255 / brightest) if 0 < brightest < 255 else coverage


def draw_pair(
    pair: Pair, rng: np.random.Generator, *, size: int, frames: int = FRAMES
) -> tuple[Augmentation, np.ndarray, np.ndarray]:
    """Draw an augmentation for a pair (``draw_static``), and read image and coverage (``read_pair``).

    Raises:
        DataError: a file cannot be used.
    """
    augmentation = draw_static(rng, *image_size(pair.image), size=size, frames=frames)
    return augmentation, *read_pair(pair, reduction=augmentation.warps[0].reduction)


def read_pair(pair: Pair, *, reduction: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Read the image and the coverage of the object.

    With a cache, a file is decoded only once, and every process reads the decoded pixels from the cache. It is decoded
    again when its path, size or time of change differs.

    Returns:
        The image, uint8 [H / reduction, W / reduction, 3], and the coverage, uint8 [H, W] from 0 to 255.

    Raises:
        DataError: a file cannot be used.
    """
    image = _cached(pair.cache_dir, pair.image, partial(read_image, reduction=reduction), f'image {reduction}')
    coverage = _cached(pair.cache_dir, pair.mask, read_coverage, 'coverage')
    size_hw = image.shape[:2] if reduction == 1 else image_size(pair.image)
    return image, fit_mask(coverage, size_hw, pair.mask)


def _cached(folder: str | None, path: str, decode: Callable[[str], np.ndarray], kind: str) -> np.ndarray:
    """What ``decode`` returns for a file, read from ``folder`` if it was kept there."""
    if folder is None or not os.path.exists(path):
        return decode(path)
    status = os.stat(path)
    key = f'{kind} {status.st_size} {status.st_mtime_ns} {os.path.abspath(path)}'
    name = hashlib.sha256(os.fsencode(key)).hexdigest()
    stored = Path(folder, name[:2], f'{name}.npy')
    with suppress(OSError, ValueError, EOFError):  # not there yet, or damaged
        return np.load(stored)
    array = decode(path)
    try:
        with atomic_path(stored, shared=True) as temporary, open(temporary, 'wb') as file:
            np.save(file, array)
    except OSError as error:
        # NumPy's own error has no number, and its text names the sizes of the file. The warning needs one text for
        # all files, since each text is logged once.
        cause = os.strerror(error.errno) if error.errno else 'the disk takes only a part of a file'
        _warn_once(f'{folder}: training goes on, but not all images can be kept decoded ({cause})')
    return array


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


class StaticDataset(AddressedDataset):
    """Clips of T views of an image with one object, K = 1. T is ``frames``, S is ``size``. A sample has

    - rgb: float32 [T, 3, S, S], normalised for ImageNet
    - masks: uint8 [T, K, S, S], 0 or 1
    - target: int64 [T, S, S], 0 for background, 1 for the object
    - selector: float32 [K], always 1
    - name: the image's path
    """

    def __init__(self, pairs: list[Pair], *, size: int = 384, frames: int = FRAMES) -> None:
        super().__init__()
        self.pairs, self.size, self.frames = pairs, size, frames

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, index: int, rng: np.random.Generator, *, max_skip: int = 0) -> dict[str, Any]:
        """Views of the image of this index; ``max_skip`` is not used."""
        pair = self.pairs[index]
        augmentation, image, coverage = draw_pair(pair, rng, size=self.size, frames=self.frames)
        base = recolour(image, augmentation.colour)
        views = zip(augmentation.warps, augmentation.frame_colours, strict=True)
        rgb = normalise([warp.image(recolour(base, colour)) for warp, colour in views])
        masks = np.stack([warp.mask(coverage) for warp in augmentation.warps]).view(np.uint8)
        return {
            'rgb': torch.from_numpy(rgb),
            'masks': torch.from_numpy(masks[:, None]),
            'target': torch.from_numpy(masks.astype(np.int64)),
            'selector': torch.ones(1),
            'name': pair.image,
        }
