"""Makes the reduced copies of data sets that training reads; the script is ``convert.py``."""

import io
import logging
import multiprocessing
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset.io import PALETTE, DataError, fit_mask, list_frames, read_image, read_mask
from util.files import atomic_path

log = logging.getLogger(__name__)

SHORTER, LONGER = 480, 512
QUALITY = 95
FULL_SIZE = ('BIG', 'HRSOD')

Size = tuple[int, int]  # width, height


class Item(NamedTuple):
    """An image with its mask, if it has one, and the paths of their copies."""

    image: Path
    small_image: Path
    mask: Path | None = None
    small_mask: Path | None = None


class Report(NamedTuple):
    written: int = 0  # images that were converted
    skipped: int = 0  # images whose copies existed already
    problems: tuple[str, ...] = ()


def shorter_side(size: Size) -> Size:
    """The size, scaled to a shorter side of at most 480; the longer side is rounded down, as in an evaluation."""
    short = min(size)
    return size if short <= SHORTER else (size[0] * SHORTER // short, size[1] * SHORTER // short)


def longer_side(size: Size) -> Size:
    """The size, scaled to a longer side of at most 512."""
    long = max(size)
    return size if long <= LONGER else tuple(max(1, round(side * LONGER / long)) for side in size)


def youtube_items(video: str, *, root: Path) -> list[Item]:
    """All frames of a video, with their masks. Raises DataError for a mask without an image."""
    images, annotations = Path('JPEGImages', video), Path('Annotations', video)
    small = root / 'train_480p'
    masks = {path.stem: path for path in list_frames(root / 'train' / annotations)}
    items = []
    for image in list_frames(root / 'train' / images):
        mask = masks.pop(image.stem, None)
        items.append(
            Item(image, small / images / image.name, mask, small / annotations / f'{image.stem}.png' if mask else None)
        )
    if masks:
        raise DataError(f'{root / "train" / annotations}: {len(masks)} mask(s) without an image: {some(masks)}')
    return items


def static_items(name: str, *, root: Path) -> tuple[list[Item], list[str]]:
    """Find the pairs of image and mask in ``root/name`` and below; also returns a message for each file left out.

    A pair is N.jpg and N.png or, as in BIG, N_im.jpg and N_gt.png.
    """
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    problems = []
    for path in sorted((root / name).rglob('[!.]*')):
        suffix = path.suffix.lower()
        if suffix in ('.jpg', '.jpeg', '.png'):
            stem, found = path.stem.removesuffix('_im').removesuffix('_gt'), masks if suffix == '.png' else images
            if stem in found:
                problems.append(f'{path}: left out, because {found[stem]} has the same name')
            found.setdefault(stem, path)
    alone = images.keys() ^ masks.keys()
    problems += [
        f'{images.get(stem) or masks[stem]}: found no {"mask" if stem in images else "image"} for it'
        for stem in sorted(alone)
    ]
    small = root / f'{name}_small'
    return [
        Item(image, small / f'{stem}.jpg', masks[stem], small / f'{stem}.png')
        for stem, image in images.items()
        if stem in masks
    ], problems


def convert(item: Item, *, resize: Callable[[Size], Size], soft: bool) -> bool:
    """Write the copies of an image and its mask. Returns False if they exist already.

    Args:
        resize: size of an image -> size of its copy.
        soft: whether the mask shows one object in values 0 to 255, perhaps with soft edges; otherwise it has labels.

    Raises:
        DataError: image or mask cannot be used; neither is written.
    """
    if item.small_image.exists() and (item.mask is None or item.small_mask.exists()):
        return False
    image = read_image(item.image)
    size = image.shape[1::-1]
    small = resize(size)
    if item.mask is not None:
        mask = read_soft_mask(item.mask) if soft else read_mask(item.mask)
        if mask.shape[::-1] == small:
            copy(item.mask, item.small_mask)
        else:
            mask = fit_mask(mask, (size[1], size[0]), item.mask)
            write(item.small_mask, shrink(mask, small) if soft else shrink_labels(mask, small, palette_of(item.mask)))
    if size == small:
        copy(item.image, item.small_image)
    else:
        write(item.small_image, shrink(image, small))
    return True


def read_soft_mask(path: Path) -> np.ndarray:
    from dataset.static import read_coverage  # here, because it imports torch, which other data sets do not need

    return read_coverage(path)


def shrink(values: np.ndarray, size: Size) -> Image.Image:
    return Image.fromarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA))


def shrink_labels(labels: np.ndarray, size: Size, palette: bytes) -> Image.Image:
    # PIL takes the pixel at the centre of the area that is averaged in the image; OpenCV's may lie a pixel beside it.
    small = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    small.putpalette(palette)
    return small


def palette_of(mask: Path) -> bytes:
    with Image.open(mask) as image:
        return bytes(image.getpalette()) if image.mode == 'P' else PALETTE.tobytes()


def write(path: Path, image: Image.Image) -> None:
    # Pillow does not report a disk that gets full in the middle of a JPEG, so it encodes in memory.
    image.save(content := io.BytesIO(), format='PNG' if path.suffix.lower() == '.png' else 'JPEG', quality=QUALITY)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getvalue())


def copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def convert_items(items: list[Item], *, resize: Callable[[Size], Size], soft: bool) -> Report:
    cv2.setNumThreads(1)  # images are converted in several processes, which would compete with OpenCV's threads
    done, problems = [], []
    for item in items:
        try:
            done.append(convert(item, resize=resize, soft=soft))
        except DataError as error:
            problems.append(str(error))
    return Report(sum(done), len(done) - sum(done), tuple(problems))


def convert_video(video: str, *, root: Path) -> Report:
    try:
        items = youtube_items(video, root=root)
    except DataError as error:
        return Report(problems=(str(error),))
    return convert_items(items, resize=shorter_side, soft=False)


def youtube_jobs(root: Path) -> list[Callable[[], Report]]:
    """A job for each video."""
    train = root / 'train'
    videos = sorted({path.name for kind in ('JPEGImages', 'Annotations') for path in (train / kind).glob('[!.]*/')})
    if not videos:
        raise DataError(f'{train}: expected JPEGImages/<video> and Annotations/<video>, found none. Check --root.')
    if (train / 'meta.json').is_file():
        copy(train / 'meta.json', root / 'train_480p' / 'meta.json')
    return [partial(convert_video, video, root=root) for video in videos]


def static_jobs(root: Path) -> list[Callable[[], Report]]:
    """A job for each image, since the images are large."""
    jobs: list[Callable[[], Report]] = []
    for name in FULL_SIZE:
        items, problems = static_items(name, root=root)
        log.info('%s: %d image(s)', root / name, len(items))
        jobs.append(partial(Report, problems=tuple(problems)))
        jobs += [partial(convert_items, [item], resize=longer_side, soft=True) for item in items]
    if len(jobs) == len(FULL_SIZE):
        raise DataError(f'{root}: expected images with masks in {" or ".join(FULL_SIZE)}, found none. Check --root.')
    return jobs


def stills_jobs(root: Path, output: Path, *, every: int, hold_aside: Iterable[str]) -> list[Callable[[], Report]]:
    """A job for each training video of DAVIS that is not held aside."""
    from dataset.video import find_davis, without  # here, because it imports torch, which other data sets do not need

    videos = without(find_davis(root), hold_aside)
    if not videos:
        raise DataError(f'{root}: expected training videos of DAVIS in 2017/trainval, found none. Check --root.')
    return [
        partial(
            convert_stills, [Path(video.images, frame) for frame in video.frames[::every]], Path(video.masks), output
        )
        for video in videos
    ]


def convert_stills(images: list[Path], masks: Path, output: Path) -> Report:
    """Write ``output/<video>_<frame>_<label>.jpg`` and ``.png`` for every object of the images."""
    written, skipped, problems = 0, 0, []
    for image in images:
        try:
            path = masks / f'{image.stem}.png'
            labels = fit_mask(read_mask(path), read_image(image).shape[:2], path)
        except DataError as error:
            problems.append(str(error))
            continue
        for label in np.unique(labels[labels > 0]).tolist():
            still = output / f'{masks.name}_{image.stem}_{label}.jpg'
            if still.exists():
                skipped += 1
                continue
            write(still.with_suffix('.png'), Image.fromarray(np.where(labels == label, 255, 0).astype(np.uint8)))
            copy(image, still)
            written += 1
    return Report(written, skipped, tuple(problems))


def run_all(jobs: list[Callable[[], Report]], *, num_workers: int) -> Report:
    """Run the jobs in several processes. Problems are logged when they are found."""
    total = Report()
    with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context('spawn')) as pool:
        reports = map(call, jobs) if num_workers == 1 else pool.map(call, jobs)
        for report in tqdm(reports, total=len(jobs), disable=None):  # None: a bar only on a terminal
            for problem in report.problems:
                log.error('%s', problem)
            total = Report(*(ours + theirs for ours, theirs in zip(total, report, strict=True)))
    return total


def call(job: Callable[[], Report]) -> Report:
    return job()


def some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
