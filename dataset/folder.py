"""Reads a user's videos: ``ROOT/JPEGImages/<video>/`` with ``ROOT/Annotations/<video>/``, or without ``<video>``."""

import logging
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dataset.io import FRAME_SUFFIXES, DataError, check_path, entries_of, image_size, list_frames, natural_key, some
from dataset.mask_files import FrameMasks, list_masks
from dataset.sequence import Frame, GroundTruth, Video
from dataset.user_masks import UserMasks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderVideo(Video):
    """A video whose masks may have any format that :class:`UserMasks` reads."""

    masks: UserMasks = field(kw_only=True)

    def read_mask(self, frame: Frame, size: tuple[int, int]) -> np.ndarray | None:
        return None if frame.mask is None else self.masks.read(frame.name, size)

    @property
    def given(self) -> dict[str, list[int]]:
        """Name of an annotated frame -> the objects whose masks the network gets."""
        return {
            frame.name: list(frame.objects or self.masks.objects[frame.name])
            for frame in self.frames
            if frame.mask is not None
        }

    @property
    def mask_files(self) -> list[Path]:
        """The files of the masks that the network gets."""
        return [path for name in self.given for path in self.masks.given[name].files]


def folder(root: str | Path, *, first_only: bool = False, direction: str = 'forward') -> list[FolderVideo]:
    """Open the videos of a folder.

    Every mask in ``Annotations`` is given to the network for the frame of the same name, unless ``first_only`` leaves
    it out: ``Annotations/cat/0007.png`` for ``JPEGImages/cat/0007.jpg``, or ``Annotations/cat/2/0007.png`` if each
    object has a folder of masks. If the frames are directly in ``JPEGImages``, they are one video, named like
    ``root``. All masks are read and checked.

    Args:
        root: the folder with ``JPEGImages`` and ``Annotations``.
        first_only: use only the first mask of each object; with ``backward``, only its last one.
        direction: which frames are wanted: ``forward`` those from the first annotation on, ``backward`` those up to
            the last annotation, ``both`` all.

    Raises:
        DataError: a folder is missing, a video has no frames or no masks, or a mask has no frame or cannot be used.
            One error reports the problems of all videos.
    """
    root = Path(root)
    images, annotations = root / 'JPEGImages', root / 'Annotations'
    for needed in (images, annotations):
        if not needed.is_dir():
            raise DataError(
                f'{needed}: missing; expected frames in {images} and masks in {annotations}, '
                'each video in a folder of its own, or a single video directly there'
            )
    names = _video_names(images, annotations)
    if not names:
        name = check_path(root.resolve()).name
        return [_video(name, images, annotations, first_only=first_only, direction=direction)]
    videos, problems = [], []
    for name in names:
        try:
            videos.append(_video(name, images / name, annotations / name, first_only=first_only, direction=direction))
        except DataError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise DataError('\n  '.join([f'{len(problems)} of {len(names)} videos cannot be used:', *map(str, problems)]))
    return videos


@dataclass(frozen=True)
class FolderTruth(GroundTruth):
    """Ground truth whose masks may have any format that :class:`UserMasks` reads."""

    reader: UserMasks = field(kw_only=True)

    def read(self, path: Path) -> np.ndarray:
        labels = self.reader.read(path.stem)
        assert labels is not None  # the reader has all of these paths
        return labels


def folder_truth(root: str | Path) -> list[FolderTruth]:
    """Open the ground truth of a folder's videos.

    These are all masks from the first one that shows an object to the end of the video; earlier ones are left out.

    Raises:
        DataError: there are no masks, two masks of one frame, or a mask that cannot be read or is ambiguous.
    """
    videos = []
    for name, given in _ground_truth(Path(root)).items():
        masks = tuple(each.files[0] for each in given.values())
        reader = UserMasks(list(given.values()), name=name, ground_truth=True)
        videos.append(FolderTruth(name, masks, reader=reader).from_first_object())
    return videos


def _ground_truth(root: Path) -> dict[str, dict[str, FrameMasks]]:
    """The mask files in ``ROOT/Annotations``, by video and by frame name. The files are only listed, not read.

    Videos are found as :func:`folder` finds them. Without ``ROOT/JPEGImages``, the masks are one video if there are
    files directly in ``Annotations``; otherwise each folder there is a video.

    Raises:
        DataError: there are no masks, or two masks of one frame.
    """
    images, annotations = root / 'JPEGImages', root / 'Annotations'
    if not annotations.is_dir():
        raise DataError(f'{annotations}: expected ground truth as <video>/<frame>.png, found no folder')
    folders, files = _entries(annotations)
    if images.is_dir():
        names = [name for name in _video_names(images, annotations) if name in folders]
    else:
        names = [] if files else sorted(folders, key=natural_key)
    places = {name: folders[name] for name in names} or {root.resolve().name: annotations}
    masks = {name: list_masks(place) for name, place in places.items()}
    if not any(masks.values()):
        raise DataError(f'{annotations}: expected ground truth as <video>/<frame>.png, found no masks')
    return masks


def _video_names(images: Path, annotations: Path) -> list[str]:
    """The names of the video folders in ``JPEGImages``, sorted; empty if it directly has the frames of a single video.

    If ``JPEGImages`` has both folders and frames, the folders are taken as the videos when at least one of them has a
    folder of the same name in ``Annotations``; otherwise the frames are one video. If the folders
    are the videos, files beside them and folders of masks without a video are named in a warning.
    """
    folders, files = _entries(images)
    masks, _ = _entries(annotations)
    frames = [path for path in files if path.suffix.lower() in FRAME_SUFFIXES]
    if frames and not set(folders) & set(masks):
        return []
    if not folders:
        found = some([path.name for path in files]) or 'nothing'
        raise DataError(f'{images}: expected frames ({" ".join(FRAME_SUFFIXES)}) or folders of frames, found {found}')
    if files:
        log.warning(
            '%s: these files beside the video folders are left out: %s', images, some([path.name for path in files])
        )
    if strange := [f'{name}/' for name in masks if name not in folders]:
        log.warning(
            '%s: these are left out, since %s has no videos of these names: %s', annotations, images, some(strange)
        )
    return sorted((check_path(path).name for path in folders.values()), key=natural_key)


def _entries(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """The folders in a folder, by name, and its files. Hidden ones are left out."""
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith('.')]
    return {path.name: path for path in entries if path.is_dir()}, [path for path in entries if not path.is_dir()]


def _video(name: str, images: Path, annotations: Path, *, first_only: bool, direction: str) -> FolderVideo:
    paths = list_frames(images)
    if not paths:
        raise DataError(
            f'{images}: expected frames of a video ({" ".join(FRAME_SUFFIXES)}), found {entries_of(images)}. The '
            'video folders must be directly in JPEGImages, and the frames directly in these.'
        )
    masks = list_masks(annotations) if annotations.is_dir() else {}
    if not masks:
        raise DataError(
            f'{annotations}: no masks of the frames in {images}. Expected {annotations / paths[0].stem}.png, or the '
            'mask of the frame where an object first appears'
        )
    stray = sorted(set(masks) - {path.stem for path in paths})
    if stray:
        raise DataError(f'{annotations}: masks without a frame of the same name in {images}: {some(stray)}')
    given = [masks[path.stem] for path in paths if path.stem in masks]
    places = [position for position, path in enumerate(paths) if path.stem in masks]
    begin, end = places[0], places[-1]
    size = None
    with suppress(DataError):  # an unreadable frame is reported later, when it is segmented
        size = image_size(paths[begin])
    user_masks = UserMasks(given, size_hw=size, name=name)
    asked = {'forward': range(begin, len(paths)), 'backward': range(end + 1), 'both': range(len(paths))}[direction]
    frames, known = [], set()
    order = reversed if direction == 'backward' else iter
    for position, path in order(list(enumerate(paths))):
        found = masks.get(path.stem)
        mask, objects = (found.files[0], user_masks.annotated(path.stem)) if found else (None, None)
        if found and first_only:
            objects = tuple(label for label in user_masks.objects[path.stem] if label not in known)
            known |= {*objects}
        mask = None if objects == () else mask
        frames.append(Frame(path.stem, path, mask=mask, objects=objects or None, wanted=position in asked))
    return FolderVideo(name, name, tuple(order(frames)), masks=user_masks)
