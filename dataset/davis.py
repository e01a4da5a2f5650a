"""DAVIS 2016 and 2017, as downloaded.

2017: ``ROOT/{trainval,test-dev}/{JPEGImages/480p,Annotations/480p,ImageSets/2017}``.
2016: ``ROOT/{JPEGImages,Annotations}/480p``, or the validation videos of a 2017 root.
"""

import logging
from pathlib import Path

from dataset.io import DataError, check_name, list_frames
from dataset.sequence import Frame, GroundTruth, Video

log = logging.getLogger(__name__)

DAVIS_2016_VAL = (
    'blackswan',
    'bmx-trees',
    'breakdance',
    'camel',
    'car-roundabout',
    'car-shadow',
    'cows',
    'dance-twirl',
    'dog',
    'drift-chicane',
    'drift-straight',
    'goat',
    'horsejump-high',
    'kite-surf',
    'libby',
    'motocross-jump',
    'paragliding-launch',
    'parkour',
    'scooter-black',
    'soapbox',
)
IMAGES = Path('JPEGImages', '480p')
ANNOTATIONS = Path('Annotations', '480p')
SUBSETS = {'train': 'trainval', 'val': 'trainval', 'testdev': 'test-dev'}  # of a 2017 root


def davis_videos(root: str | Path, *, year: int, split: str) -> tuple[Path, list[str]]:
    """Where a split lies, and the names of its videos.

    Args:
        root: the folder that users pass as ``--davis_path``; also the inner ``trainval`` or ``test-dev``.
        year: 2016 (``split`` has to be ``'val'``) or 2017.
        split: ``'val'``, ``'testdev'`` or ``'train'``.

    Returns:
        The folder that holds ``JPEGImages/480p`` and ``Annotations/480p``, and the sorted names. Of DAVIS 2016 these
        are the videos that are there; if some of the 20 are not, a line is logged.

    Raises:
        DataError: for a root without these folders, and for a missing or empty list.
    """
    if (year, split) not in [(2016, 'val'), *((2017, subset) for subset in SUBSETS)]:
        raise DataError(
            f'DAVIS {year} has no split {split!r} that could be evaluated: '
            f"expected 'val' for 2016, one of {', '.join(SUBSETS)} for 2017"
        )
    root = Path(root)
    candidates = [root / SUBSETS[split], root]
    base = next((folder for folder in candidates if (folder / IMAGES).is_dir()), None)
    if base is None:
        raise DataError(
            f'{root}: no DAVIS {year} {split}; expected {candidates[0] / IMAGES} or {candidates[1] / IMAGES}. '
            'docs/data.md says how to get it.'
        )
    if year == 2016:
        names = [name for name in DAVIS_2016_VAL if (base / IMAGES / name).is_dir()]
        if len(names) < len(DAVIS_2016_VAL):
            log.warning(
                '%s: %d of the %d DAVIS 2016 validation videos are here', base, len(names), len(DAVIS_2016_VAL)
            )
        if not names:
            raise DataError(f'{base / IMAGES}: none of the DAVIS 2016 validation videos is here')
        return base, names
    image_set = base / 'ImageSets' / '2017' / {'testdev': 'test-dev.txt'}.get(split, f'{split}.txt')
    try:
        names = sorted(set(image_set.read_text(encoding='utf-8-sig').split()))
    except OSError as error:
        raise DataError(f'{image_set}: cannot read the list of videos ({error.strerror})') from error
    except UnicodeDecodeError as error:
        raise DataError(f'{image_set}: expected a text file with one video per line, found other bytes') from error
    if not names:
        raise DataError(f'{image_set}: lists no videos')
    for name in names:
        check_name(name, image_set)
    missing = [name for name in names if not (base / IMAGES / name).is_dir()]
    if missing:
        raise DataError(
            f'{base / IMAGES}: {len(missing)} of the {len(names)} videos of {image_set.name} '
            f'are missing: {", ".join(missing)}'
        )
    return base, names


def davis(root: str | Path, *, year: int = 2017, split: str = 'val') -> list[Video]:
    """The videos of a split. Each is to be segmented from the annotation of its first frame.

    Every frame of ``val`` has an annotation on disk, but only that of the first frame is used. Arguments and errors
    are those of :func:`davis_videos`. An annotation whose frame is missing is an error, too.
    """
    base, names = davis_videos(root, year=year, split=split)
    videos = []
    for name in names:
        images = list_frames(base / IMAGES / name)
        if not images:
            raise DataError(f'{base / IMAGES / name}: no frames')
        first_mask = base / ANNOTATIONS / name / f'{images[0].stem}.png'
        if not first_mask.is_file():
            raise DataError(f'{first_mask}: the annotation of the first frame is missing')
        lost = {path.stem for path in list_frames(first_mask.parent)} - {path.stem for path in images}
        if lost:
            raise DataError(f'{base / IMAGES / name}: annotated frames are missing: {", ".join(sorted(lost)[:5])}')
        frames = [Frame(images[0].stem, images[0], mask=first_mask)]
        frames += [Frame(image.stem, image) for image in images[1:]]
        videos.append(Video(name, name, tuple(frames), binary=year == 2016))
    return videos


def davis_truth(root: str | Path, *, year: int = 2017, split: str = 'val') -> list[GroundTruth]:
    """The ground truth that scores the videos of a split: all frames but the first and the last.

    Arguments and errors are those of :func:`davis_videos`.
    """
    base, names = davis_videos(root, year=year, split=split)
    masks = {name: tuple(list_frames(base / ANNOTATIONS / name)) for name in names}
    return [GroundTruth(name, masks[name], skip_last=True, binary=year == 2016) for name in names]
