"""Checks whether a server would accept masks: whether all exist and have the right size, format and labels."""

import zipfile
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import Image

from dataset.io import image_size, some
from dataset.sequence import Video
from inference.outputs import PROBABILITIES, Masks
from util.errors import DataError, cause_of, foreign_call
from util.metrics import labels_in

WHITE = 255
"""The value of the object in the masks of binary videos."""


class _Handed(ABC):
    """The files of a submission, identified by their names in a folder or an archive."""

    names: list[str]

    @abstractmethod
    def open(self, name: str) -> IO[bytes]: ...


class _Folder(_Handed):
    """A folder. Only its masks count, since settings, scores and the like are not submitted."""

    def __init__(self, folder: Path):
        self.folder = folder
        paths = [path.relative_to(folder) for path in folder.rglob(f'*{Masks.suffix}')]
        self.names = sorted(path.as_posix() for path in paths if path.parts[0] != PROBABILITIES)

    def open(self, name: str) -> IO[bytes]:
        return open(self.folder / name, 'rb')


class _Archive(_Handed):
    """An archive. Every file in it counts."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive
        self.names = [info.filename for info in archive.infolist() if not info.is_dir()]

    def open(self, name: str) -> IO[bytes]:
        return self.archive.open(name)


@contextmanager
def _handed(place: Path) -> Iterator[_Handed]:
    if place.is_dir():
        yield _Folder(place)
        return
    if not place.is_file():
        raise DataError(f'{place}: expected a folder of masks or a zip archive, found nothing there')
    with foreign_call(DataError, f'{place}: expected a folder of masks or a zip archive, cannot read it'):
        archive = zipfile.ZipFile(place)
    with archive:
        yield _Archive(archive)


def check_submission(place: Path, videos: Sequence[Video], *, every_label: bool = True) -> list[str]:
    """Find the reasons why a server would refuse masks: one line each, with examples. Empty if there are none.

    Args:
        place: a folder of masks, as a run writes it, or a zip archive.
        videos: the videos of the dataset that had to be segmented.
        every_label: check the labels in all masks, which are decoded for it. Otherwise the labels are only checked in
            the last mask of each video, and only the headers of the others are read.

    Raises:
        DataError: ``place`` is neither a folder nor an archive, or the dataset itself cannot be read.
    """
    with _handed(place) as handed:
        names, causes = _match(handed.names, videos)
        faults: dict[str, list[str]] = defaultdict(list)
        for video in videos:
            wanted = [name for name in _wanted(video) if name in names]
            if wanted:
                expected = _Expected(video)
                for name in wanted:
                    labels = every_label or name == wanted[-1]
                    if fault := expected.fault(handed, names[name], labels=labels):
                        kind, found = fault
                        faults[kind].append(f'{names[name]} ({found})')
    return causes + [f'{_count(found, "mask")} {kind}: {some(found)}' for kind, found in faults.items()]


class _Expected:
    """The format, size and labels that the masks of a video must have."""

    def __init__(self, video: Video):
        self.binary = video.binary
        self.mode = 'L' if video.binary else 'P'
        self.size = image_size(video.frames[0].image)[::-1]  # W, H
        self.labels = {WHITE} if video.binary else set()
        for frame in video.frames if not video.binary else ():
            if frame.objects:
                self.labels |= {*frame.objects}
            elif (mask := video.read_mask(frame, self.size[::-1])) is not None:
                self.labels |= {*labels_in(mask)}

    def fault(self, handed: _Handed, name: str, *, labels: bool) -> tuple[str, str] | None:
        """The kind of fault of a mask and what was found, or ``None``. Labels are checked only with ``labels``."""
        try:
            with (
                foreign_call(DataError, name),
                handed.open(name) as file,
                Image.open(file, formats=('PNG',)) as image,
            ):
                if image.mode != self.mode:
                    kind = 'a grayscale PNG of 0 and 255' if self.binary else 'a palette PNG'
                    return f'of another format than {kind}', _format(image.mode)
                if image.size != self.size:
                    return 'of another size than the frames', '{} x {}, not {} x {}'.format(*image.size, *self.size)
                strange = {*labels_in(np.asarray(image))} - self.labels if labels else ()
                if strange:
                    kind = 'values other than 0 and 255' if self.binary else 'labels that the first masks do not have'
                    return f'with {kind}', some(sorted(strange))
        except DataError as error:
            cause = cause_of(error.__cause__ or error)
            return 'that cannot be read as PNG', cause.partition(' <')[
                0
            ]  # without Python's description of the file object
        return None


def _format(mode: str) -> str:
    """The name of one of Pillow's image modes."""
    return {'P': 'palette', 'L': 'grayscale', '1': 'black and white'}.get(mode, mode)


def _match(names: Sequence[str], videos: Sequence[Video]) -> tuple[dict[str, str], list[str]]:
    """Return the name that a mask should have -> the name that it has, and what is wrong with the names."""
    causes = []
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        causes.append(f'{_count(twice, "file")} in it twice: {some(twice)}')
    top = videos[0].folder.removesuffix(videos[0].name)
    wanted = {name: video for video in videos for name in _wanted(video)}
    found = _top_of(names, top, {name.removeprefix(top) for name in wanted})
    if found != top:
        causes.append(f'layout: expected {top}<video>/<frame>.png, found {found}<video>/<frame>.png')
    there = {top + name.removeprefix(found): name for name in names if name.startswith(found)}

    present = {PurePosixPath(name).parent.name for name in there.keys() & wanted.keys()}
    known = {video.name for video in videos}
    strangers, frames, others = set(), [], [name for name in names if not name.startswith(found)]
    for name in there.keys() - wanted.keys():
        video, *rest = name.removeprefix(top).split('/')
        if len(rest) != 1 or not name.endswith(Masks.suffix):
            others.append(there[name])
        elif video in known:
            frames.append(there[name])
        else:
            strangers.add(video)
    for noun, what, those in (
        ('video', 'missing', sorted(known - present)),
        ('video', 'too many', sorted(strangers)),
        ('frame', 'missing', [name for name, video in wanted.items() if name not in there and video.name in present]),
        ('frame', 'too many', sorted(frames)),
        ('file', 'not of the form <video>/<frame>.png', sorted(others)),
    ):
        if those:
            causes.append(f'{_count(those, noun)} {what}: {some(those)}')
    return there, causes


def _top_of(names: Sequence[str], top: str, wanted: set[str]) -> str:
    """The path before ``<video>/<frame>.png`` in most of the names; ``top`` if at least one of the names has that."""
    tops: Counter[str] = Counter()
    for name in names:
        tail = '/'.join(name.split('/')[-2:])
        if tail in wanted:
            tops[name.removesuffix(tail)] += 1
    return top if top in tops or not tops else tops.most_common(1)[0][0]


def _wanted(video: Video) -> list[str]:
    """The names of the masks that a video must have."""
    return [f'{name}{Masks.suffix}' for name in video.wanted]


def _count(names: Sequence[object], noun: str) -> str:
    return f'{len(names)} {noun}{"s" if len(names) > 1 else ""}'
