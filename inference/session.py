"""Interactive segmentation of a clip: a person paints masks, and the network propagates them. No user interface."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from dataset.io import DataError, read_image, read_mask, some, write_mask
from dataset.overlay import draw_masks
from inference.clip import Clip
from inference.confidence import confidence_of
from inference.config import InferenceConfig, recommended_config
from inference.directions import Annotations, Direction, Known, WaitingPass, blend
from inference.ensemble import Ensemble
from inference.sources import READERS, Picture, Source, Upcoming, at_even_distances
from inference.stream import propagate
from inference.undo import Undo
from inference.video_file import VideoWriter
from model import Network
from util.metrics import VOID


class Propagated(NamedTuple):
    """A frame that propagation has reached. Without ``labels``, the frame has no new mask (yet)."""

    frame: int
    labels: np.ndarray | None = None  # uint8 [H, W]
    confidence: float | None = None  # of the least sure object, in [0, 1]; 1 if the mask was painted


class State(NamedTuple):
    """The part of a session that is not in files; :meth:`Session.undo` restores it."""

    painted: dict[int, frozenset[int]]
    confidence: dict[int, dict[int, float]]
    names: dict[int, str]
    networks: list[Network]


class Session:
    """The masks of a clip: some frames are painted by a person, others are segmented by the network.

    A painted mask is complete: an object that is known at this frame and not painted on it is absent. All masks are
    files in ``folder/masks``, and ``propagate`` holds memory frames only while it runs; so a session takes hardly any
    memory between two propagations. The last twenty changes can be undone.

    Args:
        networks: one network, or several, whose probabilities are averaged.
        clip: the frames; see :func:`inference.clip.import_clip`.
        folder: where masks are kept. :meth:`close` deletes it.
        config: everything that determines the masks; by default what the networks' checkpoints recommend.
        object_chunk: see :class:`inference.InferenceCore`.
        options: fields of :class:`InferenceConfig` to change.

    Attributes:
        painted: painted frame -> its labels.
        confidence: propagated frame -> label -> how sure the network is of this object, in [0, 1].
        names: label -> the name of the object, which may be empty. Every object has an entry.
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
        self.confidence: dict[int, dict[int, float]] = {}
        self.names: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.clip.frames)

    def read_image(self, frame: int) -> np.ndarray:
        """Read a frame, ``[H, W, 3]`` uint8 RGB. Raises :class:`DataError` if it cannot be read."""
        return read_image(self.clip.frames[frame])

    def labels(self, frame: int) -> np.ndarray:
        """The present mask of a frame, ``[H, W]`` uint8; all background if it has none yet."""
        path = self.mask_path(frame)
        return read_mask(path) if path.exists() else np.zeros(self.shape, np.uint8)

    def mask_path(self, frame: int) -> Path:
        """The path of a frame's mask. The file exists if the frame has a mask."""
        return self.folder / 'masks' / f'{self.clip.frames[frame].stem}.png'

    def masked(self) -> list[int]:
        """The frames that have a mask."""
        there = {path.name for path in (self.folder / 'masks').glob('*.png')}
        return [frame for frame in range(len(self)) if self.mask_path(frame).name in there]

    def overlay(self, frame: int, labels: np.ndarray | None = None) -> np.ndarray:
        """``[H, W, 3]`` uint8: the frame with its present mask, or with ``labels``."""
        return draw_masks(self.read_image(frame), self.labels(frame) if labels is None else labels)

    def objects(self, frame: int, *, backward: bool = False) -> list[int]:
        """The labels that are painted on this frame or an earlier one; with ``backward``, on this or a later one."""
        known = [labels for t, labels in self.painted.items() if (t >= frame if backward else t <= frame)]
        return sorted(frozenset().union(*known))

    def add_object(self, name: str = '') -> int:
        """Add an object with the lowest free label, and return it. Raises :class:`DataError` if none is free."""
        label = next((label for label in range(1, VOID) if label not in self.names), None)
        if label is None:
            raise DataError(f'There can be {VOID - 1} objects.')
        with self.change(f'object {label}'):
            self.names[label] = name
        return label

    def rename(self, label: int, name: str) -> None:
        """Give an object a name. Raises :class:`DataError` if there is no such object."""
        self._check_object(label)
        with self.change(f'the name of object {label}'):
            self.names[label] = name

    def remove(self, label: int) -> None:
        """Remove an object from all masks; its pixels become background.

        If other objects are painted, a painted mask that showed only this object stays, and is now empty. It then says
        that the others are absent on its frame. If no object is painted any more, empty masks are deleted.

        Raises:
            DataError: there is no such object.
        """
        self._check_object(label)
        with self.change(f'the removal of object {label}'):
            del self.names[label]
            remaining = {frame: labels - {label} for frame, labels in self.painted.items()}
            self.painted = remaining if any(remaining.values()) else {}
            for frame in self.masked():
                mask, sure = self.labels(frame), self.confidence.get(frame)
                others = np.where(mask == label, 0, mask).astype(np.uint8)
                if not self.painted and not others.any():
                    self._delete(frame)
                    continue
                if (mask == label).any():
                    self._write(frame, others)
                if sure is not None:
                    self.confidence[frame] = {other: value for other, value in sure.items() if other != label}

    def paint(self, frame: int, labels: np.ndarray) -> None:
        """Make ``labels``, uint8 [H, W], the painted mask of a frame. Other frames change only with ``propagate``.

        Raises:
            DataError: ``labels`` is empty, and no other frame has a painted object.
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
        """Delete a painted mask. The frame then has no mask until it is propagated to.

        Raises:
            DataError: the frame is not painted.
        """
        if frame not in self.painted:
            raise DataError(f'Frame {frame} has no painted mask to forget.')
        with self.change(f'forgetting frame {frame}'):
            del self.painted[frame]
            self._delete(frame)

    def annotated_frames(self, limit: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Painted frames with an object, and their masks: uint8 [H, W, 3] and [H, W]; at most ``limit`` of them."""
        for frame in at_even_distances([frame for frame, labels in self.painted.items() if labels], limit):
            yield self.read_image(frame), self.labels(frame)

    def use(self, networks: list[Network], what: str) -> None:
        """Propagate with other networks from now on. The masks stay. ``what`` is the description for :meth:`undo`."""
        with self.change(what):
            self.networks = networks

    def clear(self) -> None:
        """Delete all masks and objects."""
        with self.change('clearing everything'):
            for frame in self.masked():
                self._delete(frame)
            self.painted, self.confidence, self.names = {}, {}, {}

    def restore(self, frame: int, labels: np.ndarray, *, painted: bool, confidence: dict[int, float] | None) -> None:
        """Give a frame the mask of an earlier session, uint8 [H, W]."""
        with self.change(f'the mask of frame {frame}'):
            self._write(frame, labels)
            present = frozenset(np.unique(labels[labels > 0]).tolist())
            self._name(present)
            if painted:
                self.painted[frame] = present
            elif confidence is not None:
                self.confidence[frame] = confidence

    @contextmanager
    def change(self, what: str) -> Iterator[None]:
        """Everything in the block is one change for :meth:`undo`."""
        state = State(self.painted.copy(), self.confidence.copy(), self.names.copy(), self.networks)
        with self.undone.change(what, state):
            yield

    def undo(self) -> str:
        """Undo the last change, and return its description. Raises :class:`DataError` if there is none."""
        if self.undone.last is None:
            raise DataError('There is nothing to undo.')
        what, (self.painted, self.confidence, self.names, self.networks) = self.undone.back()
        return what

    def reach(self, start: int, direction: Direction, *, to_painted: bool) -> range:
        """The frames that :meth:`propagate` is to segment."""
        before = max((frame for frame in self.painted if frame < start), default=-1) if to_painted else -1
        after = min((frame for frame in self.painted if frame > start), default=len(self)) if to_painted else len(self)
        return range(start if direction == 'forward' else before + 1, start + 1 if direction == 'backward' else after)

    def propagate(
        self, start: int, direction: Direction = 'forward', *, to_painted: bool = False
    ) -> Iterator[Propagated]:
        """Segment the clip from a frame on; all other frames keep their masks. To stop early, stop iterating.

        At ``start`` the core has the same state as in an uninterrupted run over all painted masks, bit for bit. To
        reach this state, a new core gets the earlier frames from the first painted one on, but computes only those
        that go into the memory. These are yielded without labels. Backwards it is the same with the frames in reverse
        order, from the last painted mask on.

        Args:
            start: the first frame to segment. Frames before the first painted object (backwards: after the last one)
                are left out.
            direction: ``'forward'``, ``'backward'`` or ``'both'`` from ``start``.
            to_painted: stop at the next painted frame, which keeps its mask; otherwise at the end of the clip.

        Raises:
            DataError: no painted object can reach these frames, or a frame cannot be read.
            InputError: a frame has another size than the others.
            TooLittleMemoryError: there is too little memory.
        """
        wanted = self.reach(start, direction, to_painted=to_painted)
        passes = self._passes(wanted, direction)
        blending = Blending(self, wanted) if len(passes) == 2 else None
        with self.change(f'propagating from frame {start}'):
            try:
                for source in passes:
                    yield from self._run(source, blending)
            finally:
                if blending is not None:
                    blending.waiting.remove()

    def _passes(self, wanted: range, direction: Direction) -> list['ClipSource']:
        """The one or two passes over the frames: first the backward pass, then the forward one."""
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

    def _run(self, source: 'ClipSource', blending: 'Blending | None') -> Iterator[Propagated]:
        """Run one pass. Results of the backward pass that will be blended wait on the disk for the forward pass."""
        core = Ensemble.of(self.networks, self.config, object_chunk=self.object_chunk, num_frames=len(source.order))
        waiting = blending.waiting if blending is not None and source.is_backwards else nullcontext()
        with waiting, closing(propagate(core, source)) as segmented:
            for found in segmented:
                frame = source.order[found.number]
                if not found.wanted:
                    if found.image is not None:
                        yield Propagated(frame)
                elif frame in self.painted:
                    yield Propagated(frame, self.labels(frame), 1.0)
                else:
                    known = Known(found.prob, found.objects)
                    if blending is not None and frame in blending.frames:
                        if source.is_backwards:
                            blending.waiting.put(frame, known, core.working_shape(self.shape))
                            yield Propagated(frame)
                            continue
                        known = blending.blend(frame, known)
                    labels = known.to_labels().cpu().numpy()
                    self._write(frame, labels)
                    self.confidence[frame] = sure = confidence_of(known.prob, known.objects)
                    yield Propagated(frame, labels, min(sure.values()))

    def sureness(self) -> dict[int, float]:
        """Propagated frame -> how sure the network is of its least sure object, in [0, 1]."""
        return {frame: min(sure.values(), default=1.0) for frame, sure in self.confidence.items()}

    def write_overlay(self, path: str | Path) -> None:
        """Write the clip as a video with the masks drawn on it, with its timestamps and its audio.

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
        """Delete the folder of the session with its masks."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check_object(self, label: int) -> None:
        if label not in self.names:
            raise DataError(f'There is no object {label}.')

    def _name(self, labels: frozenset[int]) -> None:
        """Add those objects that are new, without a name."""
        for label in sorted(labels - self.names.keys()):
            self.names[label] = ''

    def _write(self, frame: int, labels: np.ndarray) -> None:
        self.undone.touch(self.mask_path(frame))
        write_mask(self.mask_path(frame), labels)
        self.confidence.pop(frame, None)

    def _delete(self, frame: int) -> None:
        self.undone.touch(self.mask_path(frame))
        self.mask_path(frame).unlink(missing_ok=True)
        self.confidence.pop(frame, None)


class Blending:
    """Blends the results of both passes on the frames between the first and the last painted object.

    Args:
        session: the session of the clip.
        wanted: the frames to segment.

    Raises:
        OSError: the disk has too little room for the results that have to wait.
    """

    def __init__(self, session: Session, wanted: range):
        shown = [frame for frame, labels in session.painted.items() if labels]
        self.session = session
        self.frames = range(max(wanted.start, min(shown)), min(wanted.stop, max(shown)))
        # A painted mask is complete: it annotates all objects.
        self.annotations = Annotations(dict.fromkeys(session.painted, sorted(session.names)))
        self.waiting = WaitingPass(session.folder / 'waiting')
        self.waiting.require_room(len(self.frames), len(session.names), session.shape)

    def blend(self, frame: int, forward: Known) -> Known:
        """Blend the result of the forward pass with the waiting one of the backward pass."""
        backward = self.waiting.get(frame, self.session.shape, forward.prob.device)
        return blend(frame, forward, backward, self.annotations)


class ClipSource(Source):
    """The frames of a session in a given order, with its painted masks. Those in ``wanted`` are segmented."""

    readers = READERS

    def __init__(self, session: Session, order: range, wanted: range):
        self.session = session
        self.name = str(session.folder)
        self.order, self.wanted = order, wanted
        self.frames = len(order)
        self.is_backwards = order.step < 0

    def __iter__(self) -> Iterator[Upcoming]:
        session = self.session
        for frame in self.order:
            painted = frame in session.painted
            yield Upcoming(
                str(frame),
                partial(self._read, frame, painted),
                annotated=painted,
                objects=session.objects(frame, backward=self.is_backwards) if painted else None,
                wanted=frame in self.wanted,
                last=frame == self.order[-1],
                origin=f'frame {frame}',
            )

    def _read(self, frame: int, painted: bool) -> Picture:
        return Picture(self.session.read_image(frame), self.session.labels(frame) if painted else None)
