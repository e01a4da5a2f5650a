"""Videos of one's own: ``ROOT/JPEGImages/<video>/`` and ``ROOT/Annotations/<video>/``, or one video without names."""

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
    """A video whose masks are what :class:`UserMasks` takes."""

    masks: UserMasks = field(kw_only=True)

    def read_mask(self, frame: Frame, size: tuple[int, int]) -> np.ndarray | None:
        return None if frame.mask is None else self.masks.read(frame.name, size)

    @property
    def given(self) -> dict[str, list[int]]:
        """The objects whose masks a network gets, by the names of their frames."""
        return {
            frame.name: list(frame.objects or self.masks.objects[frame.name])
            for frame in self.frames
            if frame.mask is not None
        }


def folder(root: str | Path, *, first_only: bool = False, direction: str = 'forward') -> list[FolderVideo]:
    """The videos of a folder, with every annotation that is there; asked for from the first one on.

    Frames and masks belong together by name: ``JPEGImages/cat/0007.jpg`` and ``Annotations/cat/0007.png``, or
    ``Annotations/cat/2/0007.png`` where each object has a folder of masks. A folder with frames directly in
    ``JPEGImages`` is one video, named like the folder. All masks are looked at.

    Args:
        first_only: of each object its first mask alone; backwards, its last one.
        direction: ``backward`` asks for the frames up to the last annotation, ``both`` for all frames.

    Raises:
        DataError: for missing folders, a video without frames or masks, masks without a frame, masks that cannot be
            used; of all videos together.
    """
    root = Path(root)
    images, annotations = root / 'JPEGImages', root / 'Annotations'
    for needed in (images, annotations):
        if not needed.is_dir():
            raise DataError(
                f'{needed}: missing; expected frames in {images} and masks in {annotations}, '
                'each in a folder a video, or directly for a single video'
            )
    names = _video_names(images, annotations)
    if not names:
        return [_video(root.resolve().name, images, annotations, first_only=first_only, direction=direction)]
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
    """Ground truth whose masks are what :class:`UserMasks` takes."""

    reader: UserMasks = field(kw_only=True)

    def read(self, path: Path) -> np.ndarray:
        labels = self.reader.read(path.stem)
        assert labels is not None  # every path is one of the reader's
        return labels


def folder_truth(root: str | Path) -> list[FolderTruth]:
    """What the videos of a folder are scored by: every mask from the first that shows an object on.

    Raises:
        DataError: there are no masks, two of a frame, or one that cannot be read or has no safe meaning.
    """
    videos = []
    for name, given in _ground_truth(Path(root)).items():
        masks = tuple(each.files[0] for each in given.values())
        reader = UserMasks(list(given.values()), name=name, ground_truth=True)
        videos.append(FolderTruth(name, masks, reader=reader).from_first_object())
    return videos


def _ground_truth(root: Path) -> dict[str, dict[str, FrameMasks]]:
    """The masks of every video in ``ROOT/Annotations`` by the names of their frames, without a look at them.

    Videos are found as :func:`folder` finds them. Where there is no ``ROOT/JPEGImages``, each folder is a video, and
    files beside none are one.

    Raises:
        DataError: there are no masks, or two of a frame.
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
    """The folders of videos in ``JPEGImages``, sorted; none if its own files are the frames of a single video.

    Where it has both, the masks decide. What then is no part of any video is named in a logged line.
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
        log.warning('%s: left out, beside the folders of videos: %s', images, some([path.name for path in files]))
    if strange := [f'{name}/' for name in masks if name not in folders]:
        log.warning('%s: left out, since %s has no videos of these names: %s', annotations, images, some(strange))
    return sorted((check_path(path).name for path in folders.values()), key=natural_key)


def _entries(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """What is in a folder and not hidden: folders by name, and files."""
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith('.')]
    return {path.name: path for path in entries if path.is_dir()}, [path for path in entries if not path.is_dir()]


def _video(name: str, images: Path, annotations: Path, *, first_only: bool, direction: str) -> FolderVideo:
    paths = list_frames(images)
    if not paths:
        raise DataError(
            f'{images}: expected frames of a video ({" ".join(FRAME_SUFFIXES)}), found {entries_of(images)}. The '
            'folders of the videos are directly in JPEGImages, and their frames directly in these.'
        )
    masks = list_masks(annotations) if annotations.is_dir() else {}
    if not masks:
        raise DataError(
            f'{annotations}: no masks of the frames in {images}. Expected {annotations / paths[0].stem}.png, or the '
            'mask of the first frame at which an object is to be segmented'
        )
    stray = sorted(set(masks) - {path.stem for path in paths})
    if stray:
        raise DataError(f'{annotations}: masks without a frame of the same name in {images}: {some(stray)}')
    given = [masks[path.stem] for path in paths if path.stem in masks]
    places = [position for position, path in enumerate(paths) if path.stem in masks]
    begin, end = places[0], places[-1]
    size = None
    with suppress(DataError):  # of a frame that cannot be read; whoever comes to it complains
        size = image_size(paths[begin])
    user_masks = UserMasks(given, size_hw=size, name=name)
    asked = {'forward': range(begin, len(paths)), 'backward': range(end + 1), 'both': range(len(paths))}[direction]
    frames, known = [], set()
    order = reversed if direction == 'backward' else iter
    for position, path in order(list(enumerate(paths))):
        found = masks.get(path.stem)
        mask, objects = (found.files[0], found.objects) if found else (None, None)
        if found and first_only:
            objects = tuple(label for label in user_masks.objects[path.stem] if label not in known)
            known |= {*objects}
            mask = mask if objects else None
        frames.append(Frame(path.stem, path, mask=mask, objects=objects or None, wanted=position in asked))
    return FolderVideo(name, name, tuple(order(frames)), masks=user_masks)
