"""Finds out which files are the masks of which frames, from what a user says or from the names of the files."""

import glob
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from dataset.io import DataError, list_frames, natural_key, some

log = logging.getLogger(__name__)

MASK_SUFFIXES = ('.png', '.bmp', '.webp', '.tif', '.tiff', '.gif', '.jpg', '.jpeg')
MAX_LABEL = 255

Key = TypeVar('Key', bound=int | str)  # of a frame: its index or its name


@dataclass(frozen=True)
class GivenMask:
    """The parts of a mask as a user gives it, ``[FRAME[:LABEL]=]FILE[,FILE...]``."""

    files: tuple[Path, ...]
    frame: int | None = None
    label: int | None = None  # of the first file; each file is one object


@dataclass(frozen=True)
class FrameMasks(Generic[Key]):
    """The mask files of one frame."""

    frame: Key  # the index or the name of the frame
    files: tuple[Path, ...]
    objects: tuple[int, ...] | None = None
    """The object that each file shows. None: there is one file, with the labels of all objects."""
    binary: bool = False
    """Whether a file is refused if it shows several labels: each shows one object."""

    @property
    def pairs(self) -> list[tuple[Path, int | None]]:
        """Each file and its object."""
        return list(zip(self.files, self.objects or (None,), strict=True))


def list_masks(folder: str | Path) -> dict[str, FrameMasks[str]]:
    """The masks in a folder by the names of their frames: a file for each frame, or a folder of files for each object.

    Folders named 1 to 255 are the objects of these labels; with other names they are numbered from 1 on.

    Raises:
        DataError: the folder is missing, a frame has two masks, or there are too many objects.
    """
    folder = Path(folder)
    files = list_frames(folder, suffixes=MASK_SUFFIXES)
    if files:
        return {path.stem: FrameMasks(path.stem, (path,)) for path in files}
    return _masks_of_objects([path for path in folder.iterdir() if path.is_dir() and not path.name.startswith('.')])


def _masks_of_objects(folders: list[Path]) -> dict[str, FrameMasks[str]]:
    """The masks where each object has a folder of its own."""
    masks: dict[str, dict[int, Path]] = {}
    for label, path in _number_objects(sorted(folders, key=natural_key)).items():
        for mask in list_frames(path, suffixes=MASK_SUFFIXES):
            masks.setdefault(mask.stem, {})[label] = mask
    return {
        name: FrameMasks(name, tuple(of.values()), tuple(of), binary=True)
        for name, of in sorted(masks.items(), key=lambda item: natural_key(item[0]))
    }


def _number_objects(folders: list[Path]) -> dict[int, Path]:
    """Label -> the folder of an object."""
    if len(folders) > MAX_LABEL:
        raise DataError(
            f'{folders[0].parent}: expected at most {MAX_LABEL} folders, one per object, found {len(folders)}'
        )
    numbers = [int(path.name) if path.name.isdecimal() else 0 for path in folders]
    if len(set(numbers)) == len(numbers) and all(1 <= number <= MAX_LABEL for number in numbers):
        return dict(zip(numbers, folders, strict=True))
    log.info(
        '%s: one folder of masks per object: %s',
        folders[0].parent,
        some([f'{path.name} is object {label}' for label, path in enumerate(folders, 1)]),
    )
    return dict(enumerate(folders, 1))


def match_masks(given: Sequence[GivenMask], names: Sequence[str] | None) -> list[FrameMasks[int]]:
    """Which masks belong to which frames, in frame order.

    Masks of a folder, and several single files, belong to the frames that have their names. So does one single file,
    if there is such a frame; else it belongs to the first frame. If several folders are given, or a folder of
    folders, each of these folders is one object. Where a frame, a label or several files for one mask are given, names
    do not matter. A file that does not exist may be a pattern (``masks/*.png``).

    Args:
        names: of the frames, without suffixes; ``None`` for a video file or a camera, whose frames have no names.

    Raises:
        DataError: no frame has this name or number, or two masks are for one frame.
    """
    found: list[FrameMasks[int]] = []
    named: list[FrameMasks[str]] = []
    single: list[Path] = []
    folders: list[Path] = []
    for each in given:
        if each.frame is not None or each.label is not None or len(each.files) > 1:
            found.append(_masks_of_a_frame(each, names))
        elif each.files[0].is_dir():
            folders.append(each.files[0])
        else:
            single += _expanded(each.files[0])
    if folders:
        named += _masks_of_folders(folders)
    if len(single) > 1:
        named += [FrameMasks(path.stem, (path,)) for path in single]
    if len(single) == 1:
        found.append(FrameMasks(_frame_of(single[0], names), (single[0],)))
    found += _matched(named, names)
    frames: dict[int, FrameMasks[int]] = {}
    for masks in found:
        if (other := frames.setdefault(masks.frame, masks)) is not masks:
            raise DataError(
                f'expected one mask for frame {masks.frame}, found {other.files[0]} and {masks.files[0]}. Several '
                'files of a frame, one per object, are joined by commas.'
            )
    return [frames[frame] for frame in sorted(frames)]


def _frame_of(path: Path, names: Sequence[str] | None) -> int:
    """The frame that a single mask belongs to: the one with its name, or the first one."""
    places = {name: place for place, name in enumerate(names or ())}
    if place := places.get(path.stem):
        log.info('%s: the mask of frame %d, which has this name', path, place)
        return place
    if path.stem in places:
        return 0
    # These names may mean a frame without being its name: 00004_mask.png or frame_4.png for 00004.jpg, and the same
    # names for a frame of a video file.
    words = re.findall('[^_.-]+', path.stem)
    meant = [place for name, place in places.items() if name in words]
    if not meant:
        numbers = {int(name): place for name, place in places.items() if name.isdecimal()}
        meant = [
            number if names is None else numbers.get(number, 0) for number in map(int, filter(str.isdecimal, words))
        ]
    if len(meant) == 1 and meant[0]:
        log.warning(
            '%s: taken for the mask of frame 0, since no frame has exactly this name. If it is that of frame %d, give '
            'it as %d=%s',
            path,
            *(meant[0], meant[0], path),
        )
    return 0


def _masks_of_a_frame(given: GivenMask, names: Sequence[str] | None) -> FrameMasks[int]:
    frame, count = given.frame or 0, len(given.files)
    for path in given.files:
        if path.is_dir():
            raise DataError(
                f'{path}: expected a file for frame {frame}, found a folder. The masks in a folder have the names of '
                'their frames; give it alone.'
            )
    if names is not None and frame >= len(names):
        raise DataError(
            f'{given.files[0]}: expected a frame from 0 to {len(names) - 1}, found that the mask is for frame {frame}'
        )
    if given.label is None and count == 1:
        return FrameMasks(frame, given.files)
    first = 1 if given.label is None else given.label
    if not 1 <= first <= MAX_LABEL + 1 - count:
        raise DataError(
            f'{given.files[0]}: expected labels from 1 to {MAX_LABEL}, found {first} to {first + count - 1}'
        )
    return FrameMasks(frame, given.files, tuple(range(first, first + count)))


def _masks_of_folders(folders: list[Path]) -> list[FrameMasks[str]]:
    """The masks in one folder, or in several, each of which is one object."""
    masks = _masks_of_objects(folders) if len(folders) > 1 else list_masks(folders[0])
    if not masks:
        raise DataError(
            f'{some([str(path) for path in folders])}: expected masks ({" ".join(MASK_SUFFIXES)}), found none'
        )
    return list(masks.values())


def _expanded(path: Path) -> list[Path]:
    """The file itself if it exists; else the files that match it as a pattern."""
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    files = sorted(map(Path, glob.glob(str(path))), key=natural_key)
    masks = [file for file in files if file.suffix.lower() in MASK_SUFFIXES and file.is_file()]
    if not masks:
        raise DataError(f'{path}: expected masks ({" ".join(MASK_SUFFIXES)}), found none')
    if len(masks) < len(files):
        log.warning(
            '%s: left out, since they are not masks: %s',
            path,
            some([file.name for file in files if file not in masks]),
        )
    return masks


def _matched(masks: list[FrameMasks[str]], names: Sequence[str] | None) -> list[FrameMasks[int]]:
    """The same masks, by the indices of their frames instead of the names."""
    if masks and names is None:
        raise DataError(
            f'{masks[0].files[0]}: expected the number of its frame, since frames of a video file have no names that '
            'masks could share. Give each mask as FRAME=FILE, counting from 0.'
        )
    places = {name: place for place, name in enumerate(names or ())}
    strangers = [str(each.files[0]) for each in masks if each.frame not in places]
    if strangers:
        raise DataError(
            f'expected masks named like frames ({some(list(names or ()))}), found {some(strangers)}. Rename '
            'them, or give each as FRAME=FILE, counting from 0.'
        )
    return [FrameMasks(places[each.frame], each.files, each.objects, each.binary) for each in masks]
