"""Imports an uploaded video or zip of images as the clip of a session, with limits on its length and size."""

import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath

import cv2

from dataset.io import FRAME_SUFFIXES, DataError, check_name, image_size, list_frames, some
from inference.video_file import VideoReader
from util.errors import foreign_call

log = logging.getLogger(__name__)

IMAGE_RATE = Fraction(25)  # frames a second of a clip of images
MAX_RATE = 240  # this many frames count as at least a second, so that the limit in seconds also limits the frames
MAX_PIXELS = 4096 * 2304  # largest area of a frame in pixels
STORE_FACTOR = 10  # frames on disk may take this many times the largest upload
JPEG_QUALITY = 95
BLOCK = 2**12  # bytes that even the smallest file takes on disk


class LimitError(DataError):
    """A clip that is longer or larger than allowed."""


@dataclass(frozen=True)
class Clip:
    """Frames on disk, all of one size. A frame is shown at ``pts * time_base`` seconds."""

    frames: tuple[Path, ...]
    pts: tuple[int, ...]
    time_base: Fraction
    frame_rate: Fraction
    pixel_aspect: Fraction = Fraction(1)  # width of a pixel divided by its height
    sound: Path | None = None  # the video that the frames came from, for its audio

    @classmethod
    def of_images(cls, frames: Sequence[Path]) -> 'Clip':
        return cls(tuple(frames), tuple(range(len(frames))), 1 / IMAGE_RATE, IMAGE_RATE)


def import_clip(path: str | Path, folder: str | Path, *, max_seconds: float, max_bytes: int) -> Clip:
    """Put the frames of a video or of a zip of images into ``folder/frames``, one file for each frame.

    Images keep their names and are shown at 25 a second. Frames of a video become JPEGs. The video itself is not
    moved, since its audio is used later.

    Args:
        max_seconds: longer clips are refused.
        max_bytes: larger files are refused, as are clips whose frames take more than ten times that on disk.

    Raises:
        DataError: the file is no video and no zip of images, is damaged or empty, or its images differ in size.
        LimitError: the clip is longer or larger than allowed.
    """
    path, frames = Path(path), Path(folder) / 'frames'
    frames.mkdir(parents=True)
    if path.stat().st_size > max_bytes:
        raise LimitError(
            f'{path.name}: {path.stat().st_size / 1e6:.0f} MB, more than the {max_bytes / 1e6:.0f} MB that are allowed'
        )
    limit = STORE_FACTOR * max_bytes
    if path.suffix.lower() == '.zip':
        return _import_images(path, frames, max_seconds=max_seconds, limit=limit)
    return _import_video(path, frames, max_seconds=max_seconds, limit=limit)


def _import_images(path: Path, folder: Path, *, max_seconds: float, limit: int) -> Clip:
    with Upload(path, 'images', FRAME_SUFFIXES) as upload:
        _check_length(path, len(upload.entries) / IMAGE_RATE, max_seconds)
        if others := upload.others:
            log.warning('%s: left out entries other than %s: %s', path.name, ' '.join(FRAME_SUFFIXES), some(others))
        for name, entry in upload.entries:
            target = folder / check_name(name.name, path.name)
            if target.exists():
                raise DataError(
                    f'{path.name}: two frames are called {target.name}. Put only one folder of frames into the zip.'
                )
            limit = upload.unpack(entry, target, limit)
    frames = list_frames(folder)
    if not frames:
        raise DataError(f'{path.name}: no images in it ({" ".join(FRAME_SUFFIXES)})')
    (width, height), *sizes = map(_image_size, frames)
    for frame, size in zip(frames[1:], sizes, strict=True):
        if size != (width, height):
            raise DataError(
                f'{path.name}: expected images of one size, found {frames[0].name} {width} x {height}, '
                f'{frame.name} {size[0]} x {size[1]}'
            )
    return Clip.of_images(frames)


class Upload:
    """An uploaded zip. The paths and sizes that it states are not trusted.

    Args:
        what: what the zip should contain, for messages.
        suffixes: the suffixes of the files to take.

    Attributes:
        entries: the files to take, each with its path in the archive, in the archive's order.
        others: names of the files that are left out, without hidden files.

    Raises:
        DataError: the file is no zip, or is damaged.
    """

    def __init__(self, path: Path, what: str, suffixes: Sequence[str]):
        self.path = path
        self.unreadable = f'{path.name}: expected a zip of {what}, cannot read it'
        with foreign_call(DataError, self.unreadable):
            self.archive = zipfile.ZipFile(path)
        files = [(PurePosixPath(entry.filename), entry) for entry in self.archive.infolist() if not entry.is_dir()]
        files = [(name, entry) for name, entry in files if not name.name.startswith('.')]
        self.entries = [(name, entry) for name, entry in files if name.suffix.lower() in suffixes]
        self.others = [name.name for name, _ in files if name.suffix.lower() not in suffixes]

    def __enter__(self) -> 'Upload':
        return self

    def __exit__(self, *_) -> None:
        self.archive.close()

    def unpack(self, entry: zipfile.ZipInfo, target: Path, limit: int) -> int:
        """Write a file to ``target``, which may take ``limit`` bytes on disk. Returns how many bytes are left.

        Raises:
            DataError: the file is damaged, or compressed with a method that may take too much memory or time.
            LimitError: the file takes more than ``limit`` bytes.
        """
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            name = PurePosixPath(entry.filename).name
            raise DataError(f'{self.unreadable} ({name}: compressed by method {entry.compress_type})')
        with foreign_call(DataError, self.unreadable):
            source = self.archive.open(entry)
        limit -= BLOCK
        with source, open(target, 'wb') as file:
            chunk = None
            while chunk != b'':
                with foreign_call(DataError, self.unreadable):
                    chunk = source.read(2**20)
                limit -= file.write(chunk)
                _check_store(self.path, limit)
        return limit


def _import_video(path: Path, folder: Path, *, max_seconds: float, limit: int) -> Clip:
    frames, times = [], []
    with VideoReader(path) as video:
        check_pixels(path.name, video.width, video.height)
        for number, (image, pts) in enumerate(video):
            times.append(pts)
            seconds = (pts - times[0]) * video.time_base + 1 / video.frame_rate
            _check_length(path, max(seconds, Fraction(len(times), MAX_RATE)), max_seconds)
            frames.append(folder / f'{number:05d}.jpg')
            coded = cv2.imencode('.jpg', image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1]
            limit -= coded.nbytes
            _check_store(path, limit)
            frames[-1].write_bytes(coded.tobytes())
    if not frames:
        raise DataError(f'{path.name}: no frames in it')
    return Clip(tuple(frames), tuple(times), video.time_base, video.frame_rate, video.pixel_aspect, path)


def _check_length(path: Path, seconds: Fraction, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise LimitError(
            f'{path.name}: longer than the {max_seconds:g} seconds that are allowed '
            f'({IMAGE_RATE} images count as a second, {MAX_RATE} frames of a video as at least a second)'
        )


def _check_store(path: Path, left: int) -> None:
    if left < 0:
        raise LimitError(
            f'{path.name}: on disk, its frames take more than {STORE_FACTOR} times the largest upload allowed; '
            'shorten it or scale it down'
        )


def check_pixels(name: str, width: int, height: int) -> None:
    """Raise ``DataError`` if a picture is larger than a frame may be."""
    if width * height > MAX_PIXELS:
        raise DataError(f'{name}: {width} x {height} is more than 4096 x 2304; scale it down')


def _image_size(path: Path) -> tuple[int, int]:
    """Width and height, from the header alone."""
    height, width = image_size(path)
    check_pixels(path.name, width, height)
    return width, height
