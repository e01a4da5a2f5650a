"""Sources of frames: videos of a dataset, video files, folders of images and cameras, without networks."""

import itertools
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from dataset.io import FRAME_SUFFIXES, entries_of, list_frames, read_image
from dataset.mask_files import GivenMask, match_masks
from dataset.sequence import Frame, Video
from dataset.user_masks import UserMasks
from inference.video_file import VideoReader
from util.errors import DataError

log = logging.getLogger(__name__)

Direction = Literal['forward', 'backward', 'both']
DIRECTIONS: tuple[Direction, ...] = ('forward', 'backward', 'both')
READERS = 2  # threads that decode image files


class Picture(NamedTuple):
    """A frame that was read."""

    image: np.ndarray  # uint8 [H, W, 3] RGB
    mask: np.ndarray | None = None  # uint8 [H, W], the labels of its annotation
    pts: int = 0  # when it is shown, in ticks of the source's time base


@dataclass(frozen=True)
class Upcoming:
    """A frame that is not read yet."""

    name: str  # the name of its output files: relative to their folder, without a suffix
    read: Callable[[], Picture | None]  # called in a thread; returns None if the video has ended before this frame
    annotated: bool = False
    objects: Sequence[int] | None = None  # the labels that its annotation covers; None: those that occur in it
    wanted: bool = True  # whether its segmentation is asked for
    last: bool = False  # whether it is known to be the last frame
    origin: str = ''  # its name in messages: its file, or the video and the frame's number


def at_even_distances(numbers: Iterable[int], limit: int) -> list[int]:
    """The numbers in order, or if there are more than ``limit``, every second, third ... of them."""
    numbers = sorted(numbers)
    return numbers[:: max(1, math.ceil(len(numbers) / limit))]


class Source(ABC):
    """A sequence of frames. Iterating does not read a frame; its ``read`` does.

    Attributes:
        name: the name in messages.
        frames: the number of frames; an estimate for a video file, ``None`` for a camera.
        readers: how many threads may read at once; 1 if frames can only be read one after the other.
    """

    name: str
    frames: int | None
    readers = 1

    @abstractmethod
    def __iter__(self) -> Iterator[Upcoming]: ...

    def count(self) -> int:
        """The exact number of frames. A video file is read once for it.

        Raises:
            DataError: the source is a camera, which has no end.
        """
        assert self.frames is not None
        return self.frames

    def shape(self) -> tuple[int, int]:
        """The size (H, W) of the frames. Reads the first frame; raises ``DataError`` if it cannot be read."""
        picture = next(iter(self)).read()
        if picture is None:
            raise DataError(f'{self.name}: expected frames, found none')
        return picture.image.shape[0], picture.image.shape[1]

    def forwards(self, begin: int = 0) -> Iterator[Upcoming]:
        """The frames from number ``begin`` on."""
        return itertools.islice(self, begin, None)

    def backwards(self, begin: int) -> Iterator[Upcoming]:
        """The frames from number ``begin`` down to 0, which has ``last`` set. Raises what :meth:`count` raises."""
        frames = list(itertools.islice(self, begin + 1))  # this reads none of them
        return (replace(frames[number], last=number == 0) for number in range(begin, -1, -1))

    def annotations(self) -> dict[int, tuple[int, ...]]:
        """Annotated frame -> the labels that its annotation covers; annotations without objects are left out.

        Raises:
            DataError: an annotation has to be read for its labels, and cannot be read.
        """
        found = {}
        for number, frame in enumerate(self):
            if frame.annotated and (labels := _labels_of(frame)):
                found[number] = labels
        return found


def _labels_of(frame: Upcoming) -> tuple[int, ...]:
    if frame.objects is not None:
        return tuple(frame.objects)
    picture = frame.read()
    if picture is None or picture.mask is None:
        return ()
    return tuple(label for label in np.unique(picture.mask).tolist() if label)


class Course(Source):
    """The frames of a source from frame ``begin`` to the last one or, backwards, to the first one.

    Args:
        begin: number of the frame that comes first.
        backwards: whether the frames come in reverse order.
    """

    def __init__(self, source: Source, begin: int = 0, *, backwards: bool = False):
        self.source = source
        self.begin = begin
        self.is_backwards = backwards
        self.name, self.readers = source.name, source.readers
        if backwards:
            self.frames = begin + 1
        else:
            self.frames = None if source.frames is None else max(0, source.frames - begin)

    def __iter__(self) -> Iterator[Upcoming]:
        return self.source.backwards(self.begin) if self.is_backwards else self.source.forwards(self.begin)

    def after(self, count: int) -> 'Course':
        """The remaining frames when ``count`` frames are done."""
        return Course(self.source, self.number(count), backwards=self.is_backwards)

    def number(self, position: int) -> int:
        """The number in the source of the frame at this position, which counts from 0."""
        return self.begin - position if self.is_backwards else self.begin + position


class DatasetSource(Source):
    """A video of a dataset, which says which frames are annotated and which are wanted."""

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
    """A user's own video, with masks for some of its frames.

    Attributes:
        height, width: the size of all frames in pixels.
        pixel_aspect: width of a pixel divided by its height.
        frame_rate: frames a second, on average.
        time_base: seconds of one tick of the timestamps.
        has_audio: whether there is an audio track.
        names: the names of the frames if they are files, otherwise ``None``.
        live: whether it is a camera, whose frames can be read only once.
        masks: the masks, by the number of their frame; set by :meth:`annotate`.
    """

    height: int
    width: int
    pixel_aspect = Fraction(1)
    frame_rate: Fraction
    time_base: Fraction
    has_audio = False
    names: Sequence[str] | None = None
    live = False
    masks: UserMasks[int]

    def annotate(self, given: Sequence[GivenMask]) -> None:
        """Assign the given masks to frames.

        The number of frames of a video file is an estimate, so a mask beyond it only gives a warning.

        Raises:
            DataError: a mask belongs to no frame, or cannot be used.
        """
        masks = match_masks(given, self.names)
        self.masks = UserMasks(masks, size_hw=(self.height, self.width), pixel_aspect=float(self.pixel_aspect))
        if self.frames is not None and (last := masks[-1]).frame >= self.frames:
            log.warning(
                '%s: is for frame %d, but %s states only %d frames (0 to %d)',
                last.files[0],
                last.frame,
                self.name,
                self.frames,
                self.frames - 1,
            )

    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    def annotations(self) -> dict[int, tuple[int, ...]]:
        return {number: tuple(labels) for number, labels in self.masks.objects.items() if labels}

    def frame_name(self, number: int) -> str:
        """The name of a frame's output files, without a suffix."""
        return self.names[number] if self.names is not None else f'{number:05d}'

    def annotated_frames(self, limit: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The frames that have a mask with an object, and their masks: uint8 [H, W, 3] and [H, W].

        If there are more than ``limit``, only some at even distances are taken. A video file is read only up to the
        last frame that is taken.

        Raises:
            DataError: a frame or a mask cannot be read.
        """
        numbers = at_even_distances(self.annotations(), limit)
        for number, frame in enumerate(itertools.islice(self, numbers[-1] + 1 if numbers else 0)):
            # The frames of a video file come one after the other, so none can be left out.
            if number in numbers or self.readers == 1:
                picture = frame.read()
                if picture is None:
                    return
                if number in numbers and picture.mask is not None:
                    yield picture.image, picture.mask

    def _upcoming(
        self, number: int, read: Callable[[], tuple[np.ndarray, int] | None], *, last: bool, origin: str
    ) -> Upcoming:
        given = number in self.masks.given

        def picture() -> Picture | None:
            if (found := read()) is None:
                return None
            image, pts = found
            return Picture(image, self.masks.read(number, image.shape[:2]), pts)

        objects = self.masks.annotated(number) if given else None
        annotated = given and objects != ()
        return Upcoming(self.frame_name(number), picture, annotated, objects, last=last, origin=origin)


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

    def annotate(self, given: Sequence[GivenMask]) -> None:
        super().annotate(given)
        frames = {path.resolve() for path in self.paths}
        if both := [path for path in self.masks.files if path.resolve() in frames]:
            raise DataError(
                f'{both[0]}: expected a mask, found one of the frames of {self.name}, which are all images of the '
                'folder. Move masks to another folder.'
            )

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
    """A video file or a camera. Its frames are read one after the other and named by their numbers."""

    def __init__(self, reader: 'VideoReader | Camera', name: str):
        self.name = name
        self.reader = reader
        self.live = isinstance(reader, Camera)
        self.frames, self.has_audio = reader.frames, reader.has_audio
        self.height, self.width, self.pixel_aspect = reader.height, reader.width, reader.pixel_aspect
        self.frame_rate, self.time_base = reader.frame_rate, reader.time_base

    def __iter__(self) -> Iterator[Upcoming]:
        return self.forwards()

    def count(self) -> int:
        if not isinstance(self.reader, VideoReader):
            raise DataError(
                f'{self.name}: a camera is segmented forwards only, since its frames cannot be read again. '
                'To go backwards, record a video first'
            )
        return self.reader.count()

    def forwards(self, begin: int = 0) -> Iterator[Upcoming]:
        pictures = itertools.islice(self.reader, begin, None)
        return (self._next(pictures, number, last=False) for number in itertools.count(begin))

    def backwards(self, begin: int) -> Iterator[Upcoming]:
        self.count()
        assert isinstance(self.reader, VideoReader)
        pictures = self.reader.backwards(begin)
        return (self._next(pictures, number, last=number == 0) for number in range(begin, -1, -1))

    def _next(self, pictures: Iterator[tuple[np.ndarray, int]], number: int, *, last: bool) -> Upcoming:
        origin = f'{self.name}: frame {number}'
        return self._upcoming(number, partial(next, pictures, None), last=last, origin=origin)


class Camera:
    """Reads a camera with the interface of :class:`VideoReader`. The timestamps count milliseconds from the start."""

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
                f'camera:{device}: no camera that OpenCV can open and read. Check that it is connected, that no other '
                'program uses it, and that this user may read it'
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
        log.warning('camera:%s: delivers no more frames', self.device)


def open_source(name: str, *, fps: Fraction) -> UserSource:
    """Open a video by its name: ``camera:0``, a folder of images (shown at ``fps`` frames a second) or a video file.

    Raises:
        DataError: the source does not exist or cannot be read.
        MissingPackageError: it is a video file, and PyAV is not installed.
    """
    if name.startswith('camera:'):
        return SequentialSource(Camera(name.removeprefix('camera:')), name)
    if Path(name).is_dir():
        return FolderSource(Path(name), fps=fps)
    return SequentialSource(VideoReader(name), name)
