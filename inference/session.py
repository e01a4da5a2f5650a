"""A clip that a person and the network segment together; no user interface, and no more than a frame in memory."""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.io import DataError, read_image, read_mask, some, write_mask
from dataset.overlay import draw_masks
from inference.clip import Clip
from inference.config import InferenceConfig, recommended_config
from inference.ensemble import Ensemble
from inference.sources import READERS, Picture, Source, Upcoming
from inference.stream import propagate
from inference.undo import Undo
from inference.video_file import VideoWriter
from model import Network
from util.metrics import VOID

Direction = Literal['forward', 'backward', 'both']

BAND = 0.02  # of a frame's shorter side, around its objects


class Propagated(NamedTuple):
    """A frame that was reached; of one before the start, seen again only for the memory, there is no more."""

    frame: int
    labels: np.ndarray | None = None  # uint8 [H, W]
    uncertainty: float | None = None  # in [0, 1]; 0 where the mask was painted


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


class State(NamedTuple):
    """What a session knows beside its files."""

    painted: dict[int, frozenset[int]]
    uncertainty: dict[int, float]
    names: dict[int, str]


class Session:
    """Painted masks of some frames of a clip, and the network's of others.

    A painted mask is complete: each object known up to there is what is painted, nothing if nothing is. The masks of
    all frames lie in ``folder/masks``, and ``propagate`` holds the memory frames only while it runs; so a session
    costs no memory between two propagations. Every change can be taken back, up to the last twenty.

    Args:
        networks: one network, or several, whose probabilities are averaged.
        config: everything that determines the masks; by default what the networks' checkpoints recommend.
        object_chunk: as of :class:`inference.InferenceCore`.
        options: fields of :class:`InferenceConfig` that change it.

    Attributes:
        painted: frame -> the labels on it.
        uncertainty: of the frames that were propagated to.
        names: label -> what the object is called; may be empty. Every object that there is has one.
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
        self.undone: Undo[State] = Undo(self.folder / 'masks', self.folder / 'undo')
        self.painted: dict[int, frozenset[int]] = {}
        self.uncertainty: dict[int, float] = {}
        self.names: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.clip.frames)

    def read_image(self, frame: int) -> np.ndarray:
        """``[H, W, 3]`` uint8 RGB. Raises :class:`DataError`."""
        return read_image(self.clip.frames[frame])

    def labels(self, frame: int) -> np.ndarray:
        """The present mask of a frame, ``[H, W]`` uint8; empty where there is none yet."""
        path = self.mask_path(frame)
        return read_mask(path) if path.exists() else np.zeros(self.shape, np.uint8)

    def mask_path(self, frame: int) -> Path:
        """Where the mask of a frame lies, if it has one."""
        return self.folder / 'masks' / f'{self.clip.frames[frame].stem}.png'

    def masked(self) -> list[int]:
        """The frames that have a mask."""
        there = {path.name for path in (self.folder / 'masks').glob('*.png')}
        return [frame for frame in range(len(self)) if self.mask_path(frame).name in there]

    def overlay(self, frame: int, labels: np.ndarray | None = None) -> np.ndarray:
        """``[H, W, 3]`` uint8: the frame with its present mask, or with ``labels``."""
        return draw_masks(self.read_image(frame), self.labels(frame) if labels is None else labels)

    def objects(self, frame: int, *, backward: bool = False) -> list[int]:
        """The labels that are painted on this frame or before; or on this frame or after."""
        known = [labels for t, labels in self.painted.items() if (t >= frame if backward else t <= frame)]
        return sorted(frozenset().union(*known))

    def add_object(self, name: str = '') -> int:
        """One more object, with the lowest label that is free. Raises :class:`DataError` where there is none."""
        label = next((label for label in range(1, VOID) if label not in self.names), None)
        if label is None:
            raise DataError(f'There can be {VOID - 1} objects.')
        with self.change(f'object {label}'):
            self.names[label] = name
        return label

    def rename(self, label: int, name: str) -> None:
        """Call an object ``name``. Raises :class:`DataError` where there is no such object."""
        self._check_object(label)
        with self.change(f'the name of object {label}'):
            self.names[label] = name

    def remove(self, label: int) -> None:
        """Take an object out of all masks; what it covers becomes background.

        A painted mask that showed nothing else says that the other objects are not there, and stays if there are any.

        Raises:
            DataError: there is no such object.
        """
        self._check_object(label)
        with self.change(f'the removal of object {label}'):
            del self.names[label]
            remaining = {frame: labels - {label} for frame, labels in self.painted.items()}
            for frame in self.masked():
                mask = self.labels(frame)
                if not any(remaining.values()):
                    self._delete(frame)
                elif (mask == label).any():
                    self._write(frame, np.where(mask == label, 0, mask).astype(np.uint8))
            self.painted = remaining if any(remaining.values()) else {}

    def paint(self, frame: int, labels: np.ndarray) -> None:
        """Make ``labels``, uint8 [H, W], the mask of a frame. The frames around it follow with ``propagate``.

        Raises:
            DataError: nothing is painted, and no object is known that this could remove.
        """
        if labels.shape != self.shape or labels.dtype != np.uint8:
            raise ValueError(f'labels: expected uint8 {list(self.shape)}, got {labels.dtype} {list(labels.shape)}')
        present = frozenset(np.unique(labels[labels > 0]).tolist())
        if not present and not any(there for t, there in self.painted.items() if t != frame):
            raise DataError(f'Nothing is painted on frame {frame}, nor on another. Paint an object first.')
        with self.change(f'the mask of frame {frame}'):
            self._write(frame, labels)
            self.painted[frame] = present
            self._name(present)

    def forget(self, frame: int) -> None:
        """Take a painted mask back; the frame has none until it is propagated to.

        Raises:
            DataError: the frame is not painted.
        """
        if frame not in self.painted:
            raise DataError(f'Nothing was kept on frame {frame} that could be forgotten.')
        with self.change(f'forgetting frame {frame}'):
            del self.painted[frame]
            self._delete(frame)

    def clear(self) -> None:
        """Take all masks and objects away."""
        with self.change('clearing everything'):
            for frame in self.masked():
                self._delete(frame)
            self.painted, self.uncertainty, self.names = {}, {}, {}

    def restore(self, frame: int, labels: np.ndarray, *, painted: bool, uncertainty: float | None) -> None:
        """Give a frame the mask that it had in an earlier session, uint8 [H, W]."""
        with self.change(f'the mask of frame {frame}'):
            self._write(frame, labels)
            present = frozenset(np.unique(labels[labels > 0]).tolist())
            self._name(present)
            if painted:
                self.painted[frame] = present
            elif uncertainty is not None:
                self.uncertainty[frame] = uncertainty

    @contextmanager
    def change(self, what: str) -> Iterator[None]:
        """What happens in the block is one change for :meth:`undo`."""
        state = State(self.painted.copy(), self.uncertainty.copy(), self.names.copy())
        with self.undone.change(what, state):
            yield

    def undo(self) -> str:
        """Take the last change back; what it was. Raises :class:`DataError` where there is none."""
        if self.undone.last is None:
            raise DataError('There is nothing to undo.')
        what, (self.painted, self.uncertainty, self.names) = self.undone.back()
        return what

    def reach(self, start: int, direction: Direction, *, to_painted: bool) -> range:
        """The frames that :meth:`propagate` is to segment."""
        before = max((frame for frame in self.painted if frame < start), default=-1) if to_painted else -1
        after = min((frame for frame in self.painted if frame > start), default=len(self)) if to_painted else len(self)
        return range(start if direction == 'forward' else before + 1, start + 1 if direction == 'backward' else after)

    def propagate(
        self, start: int, direction: Direction = 'forward', *, to_painted: bool = False
    ) -> Iterator[Propagated]:
        """Segment the clip from a frame on; all other frames keep their masks. Stop iterating to stop.

        The core's state at ``start`` is that of an uninterrupted run over all painted masks, bit for bit: the frames
        before are given to a new core again, of which it computes only those that go into the memory, every fifth.
        They are yielded without labels. A memory kept from the last run would save that, at the cost of holding it.
        Backwards it is the same over the frames in reverse order, from the last painted mask on.

        Args:
            start: the first frame to segment; frames where no object is known, since none is painted before
                (backwards: after), are left out.
            direction: ``'both'``: to both sides.
            to_painted: up to the next painted frame, which keeps its mask; else to the end of the clip.

        Raises:
            DataError: no object is painted from which these frames could be reached, or a frame cannot be read.
            InputError: a frame is of another size.
            TooLittleMemoryError: of the GPU.
        """
        wanted = self.reach(start, direction, to_painted=to_painted)
        passes = self._passes(wanted, direction)
        with self.change(f'propagating from frame {start}'):
            for source in passes:
                yield from self._run(source)

    def _passes(self, wanted: range, direction: Direction) -> list['ClipSource']:
        """The frames to go through, in their order."""
        shown = [frame for frame, labels in self.painted.items() if labels]
        if not shown:
            raise DataError('Nothing is painted yet. Paint an object where it is seen well.')
        passes = []
        if direction != 'forward' and max(shown) >= wanted.start:
            passes.append(ClipSource(self, range(max(shown), wanted.start - 1, -1), wanted))
        if direction != 'backward' and min(shown) < wanted.stop:
            passes.append(ClipSource(self, range(min(shown), wanted.stop), wanted))
        if not passes:
            raise DataError(
                f'Frames {wanted.start} to {wanted.stop - 1} cannot be reached {direction}s: objects are painted on '
                f'the frames {some(sorted(shown))}.'
            )
        return passes

    def _run(self, source: 'ClipSource') -> Iterator[Propagated]:
        core = Ensemble.of(self.networks, self.config, object_chunk=self.object_chunk, num_frames=len(source.order))
        with closing(propagate(core, source)) as segmented:
            for found in segmented:
                frame = source.order[found.number]
                if not found.wanted:
                    if found.image is not None:
                        yield Propagated(frame)
                elif frame in self.painted:
                    yield Propagated(frame, self.labels(frame), 0.0)
                else:
                    labels = found.labels.cpu().numpy()
                    self._write(frame, labels)
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

    def _check_object(self, label: int) -> None:
        if label not in self.names:
            raise DataError(f'There is no object {label}.')

    def _name(self, labels: frozenset[int]) -> None:
        """Know of these objects."""
        for label in sorted(labels - self.names.keys()):
            self.names[label] = ''

    def _write(self, frame: int, labels: np.ndarray) -> None:
        self.undone.touch(self.mask_path(frame))
        write_mask(self.mask_path(frame), labels)
        self.uncertainty.pop(frame, None)

    def _delete(self, frame: int) -> None:
        self.undone.touch(self.mask_path(frame))
        self.mask_path(frame).unlink(missing_ok=True)
        self.uncertainty.pop(frame, None)


class ClipSource(Source):
    """Frames of a session, forwards or backwards, with its painted masks; those in ``wanted`` are asked for."""

    readers = READERS

    def __init__(self, session: Session, order: range, wanted: range):
        self.session = session
        self.name = str(session.folder)
        self.order, self.wanted = order, wanted
        self.frames = len(order)

    def __iter__(self) -> Iterator[Upcoming]:
        session = self.session
        for frame in self.order:
            painted = frame in session.painted
            yield Upcoming(
                str(frame),
                partial(self._read, frame, painted),
                annotated=painted,
                objects=session.objects(frame, backward=self.order.step < 0) if painted else None,
                wanted=frame in self.wanted,
                last=frame == self.order[-1],
                origin=f'frame {frame}',
            )

    def _read(self, frame: int, painted: bool) -> Picture:
        return Picture(self.session.read_image(frame), self.session.labels(frame) if painted else None)
