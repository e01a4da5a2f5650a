"""A clip that a person and the network segment together; no user interface, and no more than a frame in memory."""

import logging
import math
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.io import (
    FRAME_SUFFIXES,
    DataError,
    check_name,
    image_size,
    list_frames,
    read_image,
    read_mask,
    some,
    write_mask,
)
from dataset.overlay import draw_masks
from inference.config import InferenceConfig, recommended_config
from inference.ensemble import Ensemble
from inference.sources import READERS, Picture, Source, Upcoming
from inference.stream import propagate
from inference.video_file import VideoReader, VideoWriter
from model import Network
from util.errors import foreign_call
from util.files import atomic_path

log = logging.getLogger(__name__)

BAND = 0.02  # of a frame's shorter side, around its objects
IMAGE_RATE = Fraction(25)  # frames a second of a clip that came as images
MAX_RATE = 240  # of any clip, on average over the longest time that it may take
MAX_PIXELS = 4096 * 2304  # of a frame
STORE_FACTOR = 10  # bytes of all frames on disk, to those of the largest upload
JPEG_QUALITY = 95


class LimitError(DataError):
    """A clip that is longer or larger than allowed."""


class Propagated(NamedTuple):
    """A frame that was reached; of one before the start, seen again only for the memory, there is no more."""

    frame: int
    labels: np.ndarray | None = None  # uint8 [H, W]
    uncertainty: float | None = None  # in [0, 1]; 0 where the mask was painted


@dataclass(frozen=True)
class Clip:
    """Frames on disk, all of one size, and when they are shown: ``pts`` times ``time_base`` seconds."""

    frames: tuple[Path, ...]
    pts: tuple[int, ...]
    time_base: Fraction
    frame_rate: Fraction
    pixel_aspect: Fraction = Fraction(1)  # width of a pixel to its height
    sound: Path | None = None  # the video that the frames came from

    @classmethod
    def of_images(cls, frames: Sequence[Path]) -> 'Clip':
        return cls(tuple(frames), tuple(range(len(frames))), 1 / IMAGE_RATE, IMAGE_RATE)


def uncertainty(prob: Tensor) -> float:
    """How unsure the network is of a frame, in [0, 1]: the mean entropy inside and around its objects.

    ``prob [1 + K, H, W]``, the background first. The entropy is divided by log(1 + K), that of not knowing anything,
    so that frames before and after an object joins compare. Around the objects counts a band of 2 % of the shorter
    side, where their outlines are decided and what they lost lies. Of the rest of the frame, certain background in
    most cases, a mean would only say how large the objects are. Where no object is seen it is the whole frame.
    """
    K, (H, W) = len(prob) - 1, prob.shape[1:]
    if K == 0:
        return 0.0
    entropy = torch.special.entr(prob).sum(dim=0) / math.log(1 + K)
    inside = prob.argmax(dim=0) > 0
    if not inside.any():
        return entropy.mean().item()
    band = max(1, round(BAND * min(H, W)))
    near = inside[None].float()
    for kernel, padding in (((2 * band + 1, 1), (band, 0)), ((1, 2 * band + 1), (0, band))):
        near = F.max_pool2d(near, kernel, stride=1, padding=padding)
    return entropy[near[0] > 0].mean().item()


class Session:
    """Painted masks of some frames of a clip, and the network's of those that follow.

    A painted mask is complete: each object known up to there is what is painted, nothing if nothing is. The masks of
    all frames lie in ``folder/masks``, and ``propagate`` holds the memory frames only while it runs; so a session
    costs no memory between two propagations.

    Args:
        networks: one network, or several, whose probabilities are averaged.
        config: everything that determines the masks; by default what the networks' checkpoints recommend.
        object_chunk: as of :class:`inference.InferenceCore`.
        options: fields of :class:`InferenceConfig` that change it.
    """

    def __init__(
        self,
        networks: Network | Sequence[Network],
        clip: Clip,
        folder: str | Path,
        config: InferenceConfig | None = None,
        *,
        object_chunk: int | None = None,
        **options,
    ):
        self.networks = [networks] if isinstance(networks, nn.Module) else list(networks)
        self.clip = clip
        self.folder = Path(folder)
        self.config = recommended_config(self.networks, **options) if config is None else replace(config, **options)
        self.object_chunk = object_chunk
        self.shape = self.read_image(0).shape[:2]
        self.painted: dict[int, frozenset[int]] = {}  # frame -> the labels on it
        self.uncertainty: dict[int, float] = {}  # of the frames that were propagated to

    def __len__(self) -> int:
        return len(self.clip.frames)

    def read_image(self, frame: int) -> np.ndarray:
        """``[H, W, 3]`` uint8 RGB. Raises :class:`DataError`."""
        return read_image(self.clip.frames[frame])

    def labels(self, frame: int) -> np.ndarray:
        """The present mask of a frame, ``[H, W]`` uint8; empty where there is none yet."""
        path = self._mask_path(frame)
        return read_mask(path) if path.exists() else np.zeros(self.shape, np.uint8)

    def has_mask(self, frame: int) -> bool:
        return self._mask_path(frame).exists()

    def overlay(self, frame: int, labels: np.ndarray | None = None) -> np.ndarray:
        """``[H, W, 3]`` uint8: the frame with its present mask, or with ``labels``."""
        return draw_masks(self.read_image(frame), self.labels(frame) if labels is None else labels)

    def objects(self, frame: int) -> list[int]:
        """The labels that are painted on this frame or before."""
        return sorted({label for t, labels in self.painted.items() if t <= frame for label in labels})

    def paint(self, frame: int, labels: np.ndarray) -> None:
        """Make ``labels``, uint8 [H, W], the mask of a frame. The frames after it follow with ``propagate``.

        Raises:
            DataError: nothing is painted, and no object is known from before that this could remove.
        """
        if labels.shape != self.shape or labels.dtype != np.uint8:
            raise ValueError(f'labels: expected uint8 {list(self.shape)}, got {labels.dtype} {list(labels.shape)}')
        present = frozenset(np.unique(labels[labels > 0]).tolist())
        if not present and not self.objects(frame - 1):
            raise DataError(f'Nothing is painted on frame {frame}, nor before. Paint an object first.')
        write_mask(self._mask_path(frame), labels)
        self.painted[frame] = present
        self.uncertainty.pop(frame, None)

    def forget(self, frame: int) -> None:
        """Take a painted mask back; the frame has none until it is propagated to.

        Raises:
            DataError: the frame is not painted.
        """
        if self.painted.pop(frame, None) is None:
            raise DataError(f'Nothing was kept on frame {frame} that could be forgotten.')
        self._mask_path(frame).unlink()

    def propagate(self, start: int) -> Iterator[Propagated]:
        """Segment the clip from a frame on; what is before keeps its mask. Stop iterating to stop.

        The core's state at ``start`` is that of an uninterrupted run over all painted masks, bit for bit: the frames
        before are given to a new core again, of which it computes only those that go into the memory, every fifth.
        They are yielded without labels. A memory kept from the last run would save that, at the cost of holding it.

        Args:
            start: the first frame to segment; where no object is painted before, the first one with an object.

        Raises:
            DataError: nothing is painted yet, or a frame cannot be read.
            InputError: a frame is of another size.
            TooLittleMemoryError: of the GPU.
        """
        begin = min((frame for frame, labels in self.painted.items() if labels), default=None)
        if begin is None:
            raise DataError('Nothing is painted yet. Paint an object where it first appears.')
        source = ClipSource(self, begin, start)
        core = Ensemble.of(self.networks, self.config, object_chunk=self.object_chunk, num_frames=source.frames)
        with closing(propagate(core, source)) as segmented:
            for found in segmented:
                frame = begin + found.number
                if not found.wanted:
                    if found.image is not None:
                        yield Propagated(frame)
                elif frame in self.painted:
                    yield Propagated(frame, self.labels(frame), 0.0)
                else:
                    labels = found.labels.cpu().numpy()
                    write_mask(self._mask_path(frame), labels)
                    self.uncertainty[frame] = uncertainty(found.prob)
                    yield Propagated(frame, labels, self.uncertainty[frame])

    def least_sure(self, n: int = 5) -> list[int]:
        """The frames to correct next, the least sure first: up to ``n``, none of them painted, and no neighbours.

        Two of them are at least 1 / (2n) of the segmented frames apart, so one bad moment does not take them all.
        """
        apart = max(2, len(self.uncertainty) // (2 * n))
        chosen: list[int] = []
        for frame in sorted(self.uncertainty, key=self.uncertainty.__getitem__, reverse=True):
            if len(chosen) < n and all(abs(frame - other) >= apart for other in chosen):
                chosen.append(frame)
        return chosen

    def write_masks(self, path: str | Path) -> int:
        """A zip of palette PNGs named like their frames, of the frames that have a mask. Returns how many.

        Raises:
            DataError: there are none.
        """
        frames = [frame for frame in range(len(self)) if self.has_mask(frame)]
        if not frames:
            raise DataError('There are no masks yet. Paint an object and propagate.')
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, 'w') as archive:
            for frame in frames:
                # No time stamp: the same masks give the same archive. PNGs do not get smaller.
                mask = self._mask_path(frame)
                archive.writestr(zipfile.ZipInfo(mask.name), mask.read_bytes())
        return len(frames)

    def write_overlay(self, path: str | Path) -> None:
        """The clip as a video with its masks drawn on it, at its own speed and with its sound.

        Raises:
            MissingPackageError: PyAV is not installed.
            OSError: the file cannot be written.
        """
        height, width = self.shape
        with VideoWriter(
            path,
            width,
            height,
            time_base=self.clip.time_base,
            frame_rate=self.clip.frame_rate,
            pixel_aspect=self.clip.pixel_aspect,
            audio_from=self.clip.sound,
        ) as video:
            for frame, pts in enumerate(self.clip.pts):
                video.write(self.overlay(frame), pts)

    def close(self) -> None:
        """Delete the folder, frames and masks."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _mask_path(self, frame: int) -> Path:
        return self.folder / 'masks' / f'{self.clip.frames[frame].stem}.png'


class ClipSource(Source):
    """The frames of a session from ``begin`` on with its painted masks; those from ``start`` on are asked for."""

    readers = READERS

    def __init__(self, session: Session, begin: int, start: int):
        self.session = session
        self.name = str(session.folder)
        self.begin, self.start = begin, start
        self.frames = len(session) - begin

    def __iter__(self) -> Iterator[Upcoming]:
        session = self.session
        for frame in range(self.begin, len(session)):
            painted = frame in session.painted
            yield Upcoming(
                str(frame),
                partial(self._read, frame, painted),
                annotated=painted,
                objects=session.objects(frame) if painted else None,
                wanted=frame >= self.start,
                last=frame == len(session) - 1,
                origin=f'frame {frame}',
            )

    def _read(self, frame: int, painted: bool) -> Picture:
        return Picture(self.session.read_image(frame), self.session.labels(frame) if painted else None)


def import_clip(path: str | Path, folder: str | Path, *, max_seconds: float, max_bytes: int) -> Clip:
    """Put the frames of a video, or of a zip of images, into ``folder/frames``, a file a frame.

    Images keep their files and names and count as 25 a second; frames of a video become JPEGs. A video stays where
    it is, for its sound.

    Args:
        max_seconds: longer clips are refused.
        max_bytes: larger files are refused, and clips whose frames take more than ten times that on disk.

    Raises:
        DataError: it is neither, is damaged or empty, or its images differ in size.
        LimitError: it is longer or larger than allowed.
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
    """Names in the archive say nothing about where files go, nor its sizes how large they are."""
    unreadable = f'{path.name}: expected a zip of images, cannot read it'
    with foreign_call(DataError, unreadable):
        archive = zipfile.ZipFile(path)
    with archive:
        images = [(PurePosixPath(entry.filename).name, entry) for entry in archive.infolist() if not entry.is_dir()]
        images = [(name, entry) for name, entry in images if not name.startswith('.')]
        others = [name for name, _ in images if Path(name).suffix.lower() not in FRAME_SUFFIXES]
        if others:
            log.warning('%s: left out, since not %s: %s', path.name, ' '.join(FRAME_SUFFIXES), some(others))
        images = [(name, entry) for name, entry in images if name not in others]
        _check_length(path, len(images) / IMAGE_RATE, max_seconds)
        for name, entry in images:
            target = folder / check_name(name, path.name)
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f'{unreadable} ({name}: compressed by method {entry.compress_type})')
            if target.exists():
                raise DataError(f'{path.name}: two frames are called {name}. Put one folder of frames into it.')
            with foreign_call(DataError, unreadable):
                source = archive.open(entry)
            with source, open(target, 'wb') as file:
                chunk = None
                while chunk != b'':
                    with foreign_call(DataError, unreadable):
                        chunk = source.read(2**20)
                    limit -= file.write(chunk)
                    _check_store(path, limit)
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


def _import_video(path: Path, folder: Path, *, max_seconds: float, limit: int) -> Clip:
    frames, times = [], []
    with VideoReader(path) as video:
        _check_pixels(path.name, video.width, video.height)
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
            f'(images count as {IMAGE_RATE} a second, and no more than {MAX_RATE} frames as one)'
        )


def _check_store(path: Path, left: int) -> None:
    if left < 0:
        raise LimitError(
            f'{path.name}: its frames take more than {STORE_FACTOR} times the largest upload on disk; '
            'shorten it or scale it down'
        )


def _check_pixels(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(f'{name}: {width} x {height} is more than 4096 x 2304; scale it down')


def _image_size(path: Path) -> tuple[int, int]:
    """Width and height, from the header alone."""
    height, width = image_size(path)
    _check_pixels(path.name, width, height)
    return width, height
