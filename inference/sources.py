"""What gives frames: videos of a dataset, video files, folders of images, cameras. No source knows a network."""

import itertools
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.io import FRAME_SUFFIXES, entries_of, list_frames, read_image
from dataset.mask_files import GivenMask, match_masks
from dataset.sequence import Frame, Video
from dataset.user_masks import UserMasks
from inference.video_file import VideoReader
from util.errors import DataError

log = logging.getLogger(__name__)

READERS = 2  # threads that decode images which are files of their own


class Picture(NamedTuple):
    """A frame that was read."""

    image: np.ndarray  # uint8 [H, W, 3] RGB
    mask: np.ndarray | None = None  # uint8 [H, W], the labels of its annotation
    pts: int = 0  # when it is shown, in ticks of the source's time base


@dataclass(frozen=True)
class Upcoming:
    """A frame that is not read yet."""

    name: str  # of its output files, below their folder and without a suffix
    read: Callable[[], Picture | None]  # called in a thread; None: there is no such frame, the video has ended
    annotated: bool = False
    objects: Sequence[int] | None = None  # that its annotation speaks of; None: those in it
    wanted: bool = True  # whether its segmentation is asked for
    last: bool = False  # as far as that is known
    origin: str = ''  # what messages call it: its file, or the video and its number


class Source(ABC):
    """Frames in their order, each of which is read once it is asked for.

    Attributes:
        name: for messages.
        frames: how many there will be; an estimate for a video file, ``None`` for a camera.
        readers: threads that may read at once; one where frames can only be read one after the other.
    """

    name: str
    frames: int | None
    readers = 1

    @abstractmethod
    def __iter__(self) -> Iterator[Upcoming]: ...


class DatasetSource(Source):
    """A video of a dataset: its own annotations, and the frames that are asked for."""

    frames: int
    readers = READERS

    def __init__(self, video: Video):
        self.video = video
        self.name = video.name
        self.frames = len(video.frames)

    def __iter__(self) -> Iterator[Upcoming]:
        for position, frame in enumerate(self.video.frames, 1):
            yield Upcoming(
                self.video.output_name(frame),
                partial(self._read, frame),
                annotated=frame.mask is not None,
                objects=frame.objects,
                wanted=frame.wanted,
                last=position == self.frames,
                origin=str(frame.image),
            )

    def _read(self, frame: Frame) -> Picture:
        image = self.video.read_image(frame)
        return Picture(image, self.video.read_mask(frame, image.shape[:2]))


class UserSource(Source):
    """A video that a user brings, with masks for some of its frames.

    Attributes:
        height, width: of all frames.
        pixel_aspect: width of a pixel to its height.
        frame_rate: on average.
        time_base: seconds of one tick of the timestamps.
        has_audio: whether there is an audio track.
        names: of the frames, where they are files.
        masks: by the number of their frame.
    """

    height: int
    width: int
    pixel_aspect = Fraction(1)
    frame_rate: Fraction
    time_base: Fraction
    has_audio = False
    names: Sequence[str] | None = None
    masks: UserMasks[int]

    def annotate(self, given: Sequence[GivenMask]) -> None:
        """Take masks. Of a video file the number of frames is an estimate: masks beyond it are warned of.

        Raises:
            DataError: a mask is for no frame, or cannot be used.
        """
        masks = match_masks(given, self.names)
        self.masks = UserMasks(masks, size_hw=(self.height, self.width), pixel_aspect=float(self.pixel_aspect))
        if self.frames is not None and (last := masks[-1]).frame >= self.frames:
            log.warning(
                '%s: is for frame %d, but %s has %d frames (0 to %d), as far as the file says',
                last.files[0],
                last.frame,
                self.name,
                self.frames,
                self.frames - 1,
            )

    def frame_name(self, number: int) -> str:
        """That of the files of a frame."""
        return self.names[number] if self.names is not None else f'{number:05d}'

    def annotated_frames(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The frames that have a mask, and their masks: uint8 [H, W, 3] and [H, W]."""
        last = max(self.masks.given)
        for number, frame in enumerate(self):
            if number > last:
                return
            if frame.annotated or self.readers == 1:  # what comes one after the other cannot be left out
                picture = frame.read()
                if picture is None:
                    return
                if picture.mask is not None:
                    yield picture.image, picture.mask

    def _upcoming(
        self, number: int, read: Callable[[], tuple[np.ndarray, int] | None], *, last: bool, origin: str
    ) -> Upcoming:
        given = self.masks.given.get(number)

        def picture() -> Picture | None:
            if (found := read()) is None:
                return None
            image, pts = found
            return Picture(image, self.masks.read(number, image.shape[:2]), pts)

        objects = None if given is None else given.objects
        return Upcoming(self.frame_name(number), picture, given is not None, objects, last=last, origin=origin)


class FolderSource(UserSource):
    """The images of a folder."""

    frames: int
    readers = READERS

    def __init__(self, folder: Path, *, fps: Fraction):
        self.name = str(folder)
        self.paths = list_frames(folder)
        if not self.paths:
            raise DataError(f'{folder}: expected images ({", ".join(FRAME_SUFFIXES)}), found {entries_of(folder)}')
        self.height, self.width = read_image(self.paths[0]).shape[:2]
        self.frame_rate, self.time_base = fps, 1 / fps
        self.frames = len(self.paths)
        self.names = [path.stem for path in self.paths]

    def __iter__(self) -> Iterator[Upcoming]:
        for number, path in enumerate(self.paths):
            last = number == self.frames - 1
            yield self._upcoming(number, partial(self._read, number), last=last, origin=str(path))

    def _read(self, number: int) -> tuple[np.ndarray, int]:
        path = self.paths[number]
        image = read_image(path)
        if image.shape[:2] != (self.height, self.width):
            raise DataError(
                f'{path}: expected the size of the first image, {self.width} x {self.height}, '
                f'found {image.shape[1]} x {image.shape[0]}'
            )
        return image, number


class SequentialSource(UserSource):
    """A video file or a camera, whose frames come one after the other and are named by their numbers."""

    def __init__(self, reader: 'VideoReader | Camera', name: str):
        self.name = name
        self.reader = reader
        self.frames, self.has_audio = reader.frames, reader.has_audio
        self.height, self.width, self.pixel_aspect = reader.height, reader.width, reader.pixel_aspect
        self.frame_rate, self.time_base = reader.frame_rate, reader.time_base

    def __iter__(self) -> Iterator[Upcoming]:
        pictures = iter(self.reader)
        for number in itertools.count():
            origin = f'{self.name}: frame {number}'
            yield self._upcoming(number, partial(next, pictures, None), last=False, origin=origin)


class Camera:
    """A camera as :class:`VideoReader` gives a video; timestamps are those of the clock."""

    has_audio = False
    frames = None
    pixel_aspect = Fraction(1)
    time_base = Fraction(1, 1000)

    def __init__(self, device: str):
        import cv2  # --help must not wait for it

        self.device = device
        self.capture = cv2.VideoCapture(int(device) if device.isdigit() else device)
        self.capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        there, image = self.capture.read()
        if not there:
            raise DataError(
                f'camera:{device}: no camera that OpenCV can open and read. Is it connected, free, and '
                'may this user read it?'
            )
        self.height, self.width = image.shape[:2]
        self.frame_rate = Fraction(self.capture.get(cv2.CAP_PROP_FPS) or 30).limit_denominator(1001)

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        import cv2

        start, last = time.monotonic(), -1
        there, image = self.capture.read()
        while there:
            last = max(last + 1, int((time.monotonic() - start) / self.time_base))
            yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB), last
            there, image = self.capture.read()
        log.warning('camera:%s: gives no more frames', self.device)


def open_source(name: str, *, fps: Fraction) -> UserSource:
    """What a user calls his video: ``camera:0``, a folder (shown at ``fps`` frames a second) or a file.

    Raises:
        DataError: there is no such thing, or it cannot be read.
        MissingPackageError: it is a video file, and PyAV is not installed.
    """
    if name.startswith('camera:'):
        return SequentialSource(Camera(name.removeprefix('camera:')), name)
    if Path(name).is_dir():
        return FolderSource(Path(name), fps=fps)
    return SequentialSource(VideoReader(name), name)
