"""Backwards and both ways: the same stream over reversed frames, and what becomes of two passes over one video."""

import shutil
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inference.outputs import BackgroundWriter
from inference.sources import DIRECTIONS, Course, Direction, Source
from inference.stream import Passed, Segmented, propagate
from util.files import atomic_path, require_disk

if TYPE_CHECKING:
    from inference.core import Core
    from inference.stream import Stopwatch

BYTES = 0.25  # that a byte of what waits takes at most, compressed; docs/video.md says what was found


class Known(NamedTuple):
    """What one pass says of a frame."""

    prob: Tensor  # [1 + K, H, W], the background first
    objects: list[int]  # the labels of prob[1:]

    def to_labels(self) -> Tensor:
        """The most probable label of each pixel, uint8 [H, W]."""
        return torch.tensor([0, *self.objects], dtype=torch.uint8, device=self.prob.device)[self.prob.argmax(dim=0)]


class Annotations:
    """At which frames which objects are annotated.

    Args:
        labels: of every annotated frame, by its number; see :meth:`inference.sources.Source.annotations`.
    """

    def __init__(self, labels: Mapping[int, Sequence[int]]):
        self._of: dict[int | None, list[int]] = {None: sorted(labels)}
        for frame in self._of[None]:
            for label in labels[frame]:
                self._of.setdefault(label, []).append(frame)

    @property
    def frames(self) -> list[int]:
        """The annotated frames, in order."""
        return self._of[None]

    @property
    def objects(self) -> list[int]:
        """All labels."""
        return sorted(label for label in self._of if label is not None)

    def nearness(self, frame: int, label: int | None) -> float:
        """How much the forward pass counts at a frame beside the backward one, in [0, 1].

        It is linear in time: 1 at the forward pass's last annotation of the object (``None``, the background: of any
        object), 0 at that of the backward pass, and 1 where both are the frame itself, at which both were given the
        same mask.
        """
        frames = self._of[label]
        before, after = bisect_right(frames, frame) - 1, bisect_left(frames, frame)
        if before < 0:
            return 0.0
        if after == len(frames) or frames[before] == frames[after]:
            return 1.0
        return (frames[after] - frame) / (frames[after] - frames[before])


def blend(frame: int, forward: Known, backward: Known, annotations: Annotations) -> Known:
    """What both passes say together of a frame (SPEC, "Directions").

    An object that one of them knows has the probability of that one. Of one that both know it is the mean, weighted
    by :meth:`Annotations.nearness`. The background likewise; where a pass does not know an object, it takes it for
    background, so that of its background only what the object leaves counts. All are divided by their sum. Where the
    backward pass adds nothing, the forward one is returned as it is.
    """
    objects = forward.objects + [label for label in backward.objects if label not in forward.objects]
    weights = {label: annotations.nearness(frame, label) for label in objects}
    new = [label for label in objects if label not in forward.objects]
    if not new and all(weights[label] == 1 for label in backward.objects):
        return forward
    grounds = [forward.prob[0], backward.prob[0]]
    channels = []
    for label in objects:
        found = [known.prob[1 + known.objects.index(label)] for known in (forward, backward) if label in known.objects]
        if len(found) == 2:
            channels.append(weights[label] * found[0] + (1 - weights[label]) * found[1])
            continue
        channels += found
        ignorant = 0 if label in new else 1
        grounds[ignorant] = grounds[ignorant] * (1 - found[0])
    weight = annotations.nearness(frame, None)
    prob = torch.stack([weight * grounds[0] + (1 - weight) * grounds[1], *channels])
    return Known(prob / prob.sum(dim=0), objects)


class WaitingPass:
    """The probabilities of one pass while they wait for the other: a file a frame, as compressed bytes.

    They are kept at the size at which the network works, where frames are larger, in steps of 1/255. A context
    manager: files are written in the background and are all there after its block; ``remove`` deletes them.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def require_room(self, frames: int, objects: int, shape: tuple[int, int]) -> None:
        """Raises ``OSError`` if the disk has no room for so many frames and objects of a working size (H, W)."""
        present = sum(path.stat().st_size for path in self.folder.glob('*'))  # of a run that goes on
        size = int(BYTES * frames * objects * shape[0] * shape[1]) - present
        require_disk(self.folder, size, f'{self.folder}: what one pass keeps of {frames} frames for the other')

    def __enter__(self) -> 'WaitingPass':
        self._writer = BackgroundWriter(8)
        self._writer.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._writer.__exit__(*error)

    def flush(self) -> None:
        """Wait until all is on the disk."""
        self._writer.flush()

    def put(self, frame: int, known: Known, shape: tuple[int, int]) -> None:
        """Keep what is known of a frame, at this size (H, W) unless its own is smaller."""
        planes = known.prob[1:]
        if shape[0] < planes.shape[1]:
            planes = F.interpolate(planes[None], shape, mode='bilinear', align_corners=False)[0]
        self._writer.submit(self._write, frame, (255 * planes).round().to(torch.uint8), known.objects)

    def _write(self, frame: int, planes: Tensor, objects: list[int]) -> None:
        with atomic_path(self._path(frame)) as temporary, open(temporary, 'wb') as file:
            np.savez_compressed(file, planes=planes.cpu().numpy(), objects=np.array(objects, np.uint8))

    def get(self, frame: int, shape: tuple[int, int], device: torch.device) -> Known:
        """What was put, at the size (H, W) of the frame."""
        with np.load(self._path(frame)) as file:
            planes, objects = torch.from_numpy(file['planes']), file['objects'].tolist()
        planes = planes.to(device).float() / 255
        if planes.shape[1:] != shape:
            planes = F.interpolate(planes[None], shape, mode='bilinear', align_corners=False)[0]
        return Known(torch.cat([(1 - planes.sum(dim=0, keepdim=True)).clamp(min=0), planes]), objects)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, frame: int) -> Path:
        return self.folder / f'{frame:08d}.npz'


class Propagation:
    """The way of a video through a core in one direction or both, frame by frame.

    Backwards is the same stream over the frames in reverse order, from the last one on. Both is a pass backwards, from
    the last annotated frame to the first frame, and then one forwards, from the first annotated frame on. Frames that
    only one of the passes knows are as it has them; of those between the first and the last annotation the backward
    pass waits on the disk, and :func:`blend` decides.

    Iterating over :meth:`frames` gives every frame once it is final: with both directions, first those before the
    first annotation, backwards, then the others, forwards. What is gone through without being final comes as
    :class:`inference.stream.Passed`.

    Args:
        make_core: makes a core that has seen nothing, for each pass; there is never more than one at a time.
        source: the video.
        direction: ``forward``, ``backward`` or ``both``.
        folder: for what waits. It is made if anything does; :meth:`remove` deletes it.

    Attributes:
        core: of the pass that is under way, or was.
        courses: the frames of each pass.
        course: the place of the pass that is under way among them.
        done: how many frames of it are done.
        passed: how many frames of all passes are.
        steps: frames of all passes, as far as is known.

    Raises:
        DataError: the source has no other direction than forward, or its annotations cannot be read.
        OSError: the disk has no room for what has to wait.
        ValueError: there is no such direction.
    """

    def __init__(self, make_core: Callable[[], 'Core'], source: Source, direction: Direction, folder: Path):
        if direction not in DIRECTIONS:
            raise ValueError(f'direction: expected one of {", ".join(DIRECTIONS)}, found {direction!r}')
        self.make_core = make_core
        self.direction = direction
        self.core = make_core()
        self.waiting = WaitingPass(folder)
        self.annotations = Annotations({})
        # The backward pass alone knows the frames before the first, both passes know those before the last.
        self.first = self.last = 0
        if direction == 'forward':
            self.courses = [Course(source)]
        elif direction == 'backward':
            self.first = self.last = source.count()
            self.courses = [Course(source, self.last - 1, backwards=True)]
        else:
            self._plan_both(source)
        self.course = self.done = self.passed = 0
        frames = [course.frames for course in self.courses]
        self.steps = None if None in frames else sum(count or 0 for count in frames)

    def _plan_both(self, source: Source) -> None:
        count = source.count()
        labels = {frame: objects for frame, objects in source.annotations().items() if frame < count}
        self.annotations = Annotations(labels)
        if labels:
            self.first, self.last = self.annotations.frames[0], self.annotations.frames[-1]
        self.courses = [Course(source, self.first)]
        if self.last > 0:
            self.courses.insert(0, Course(source, self.last, backwards=True))
        if self.last > self.first:
            shape = self.core.working_shape(source.shape())
            self.waiting.require_room(self.last - self.first, len(self.annotations.objects), shape)

    def frames(self, stopwatch: 'Stopwatch | None' = None) -> Generator[Segmented | Passed, None, None]:
        """Every frame. Raises as :func:`inference.stream.propagate`, and ``OSError`` where what waits is written."""
        for _ in self.courses[self.course :]:
            yield from self.frames_of_pass(stopwatch)

    def frames_of_pass(self, stopwatch: 'Stopwatch | None' = None) -> Generator[Segmented | Passed, None, None]:
        """The frames that are left of the pass that is under way; after them the next one is."""
        course = self.courses[self.course].after(self.done)
        with self.waiting:
            for found in propagate(self.core, course, stopwatch):
                self.done += 1
                self.passed += 1
                yield self._finish(found._replace(number=course.number(found.number)), course)
        self.course += 1
        if self.course < len(self.courses):
            self.done = 0
            del self.core  # first, so that two memories are never there together
            self.core = self.make_core()

    @property
    def next_frame(self) -> int:
        """The number of the frame that is to come; at the end, the one after the last."""
        return self._present.number(self.done)

    @property
    def finished(self) -> range:
        """The frames that have come and are final."""
        if self._present.is_backwards:
            return range(self.next_frame + 1, self.first)
        return range(self.next_frame)

    @property
    def _present(self) -> Course:
        """The pass that is under way, or was."""
        return self.courses[min(self.course, len(self.courses) - 1)]

    def _finish(self, found: Segmented | Passed, course: Course) -> Segmented | Passed:
        """A frame as it is in the end; ``Passed`` while it is not."""
        if not found.wanted:
            return found
        known_to_both = self.first <= found.number < self.last
        known, shape = Known(found.prob, found.objects), found.image.shape[:2]
        if course.is_backwards:
            if found.number < self.first:
                return found
            if known_to_both:
                self.waiting.put(found.number, known, self.core.working_shape(shape))
            return Passed(found.number, found.name, False, found.image)
        if known_to_both:
            waiting = self.waiting.get(found.number, shape, found.prob.device)
            known = blend(found.number, known, waiting, self.annotations)
            return found._replace(prob=known.prob, labels=known.to_labels(), objects=known.objects)
        return found

    def flush(self) -> None:
        """Wait until all that waits is on the disk; between two frames."""
        self.waiting.flush()

    def remove(self) -> None:
        """Delete what waited."""
        self.waiting.remove()
