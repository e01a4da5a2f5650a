"""Propagation forwards, backwards or both ways, where the results of a backward and a forward pass are blended."""

import shutil
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inference.core import Core, most_probable
from inference.outputs import BackgroundWriter
from inference.sources import DIRECTIONS, Course, Direction, Source
from inference.stream import Passed, Segmented, Stopwatch, propagate
from util.files import atomic_path, require_disk

BYTES = 0.25  # largest compressed size of one byte of probabilities; docs/video.md has the measurement


class Known(NamedTuple):
    """The result of one pass for a frame."""

    prob: Tensor  # [1 + K, H, W], the background first
    objects: list[int]  # the labels of prob[1:]

    def to_labels(self) -> Tensor:
        """The most probable label of each pixel, uint8 [H, W]."""
        return most_probable(self.prob, self.objects)


class Annotations:
    """Knows which objects are annotated at which frames.

    Args:
        labels: number of an annotated frame -> its labels; see :meth:`inference.sources.Source.annotations`.
    """

    def __init__(self, labels: Mapping[int, Sequence[int]]):
        self._of: dict[int | None, list[int]] = {None: sorted(labels)}
        for frame in self._of[None]:
            for label in labels[frame]:
                self._of.setdefault(label, []).append(frame)

    @property
    def frames(self) -> list[int]:
        """The numbers of the annotated frames, in order."""
        return self._of[None]

    @property
    def objects(self) -> list[int]:
        """All annotated labels, in order."""
        return sorted(label for label in self._of if label is not None)

    def nearness(self, frame: int, label: int | None) -> float:
        """The weight of the forward pass at a frame, in [0, 1]; the backward pass has the rest.

        The weight falls linearly in time from 1 at the object's last annotation before the frame to 0 at its next
        annotation after it. For the background (``label=None``) annotations of any object count. At an annotated
        frame the weight is 1, since both passes were given the same mask.
        """
        frames = self._of[label]
        before, after = bisect_right(frames, frame) - 1, bisect_left(frames, frame)
        if before < 0:
            return 0.0
        if after == len(frames) or frames[before] == frames[after]:
            return 1.0
        return (frames[after] - frame) / (frames[after] - frames[before])


def blend(frame: int, forward: Known, backward: Known, annotations: Annotations) -> Known:
    """Combine the results of both passes for a frame.

    The probability of an object that both passes know is the mean of the two, weighted by
    :meth:`Annotations.nearness`. An object that only one pass knows keeps the probability from that pass. The other
    pass takes that object for background, so its background probability is first multiplied by one minus the object's
    probability. The background is then the weighted mean of the two, and all probabilities are divided by their sum.
    If the backward pass adds nothing, the result of the forward pass is returned unchanged.
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
    """Keeps the probabilities of one pass on the disk until the other pass needs them: a compressed file per frame.

    They are stored in steps of 1/255, and at the size at which the network works if frames are larger. This is a
    context manager: files are written in the background and are complete after its block. ``remove`` deletes them.

    Args:
        folder: where the files go.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def require_room(self, frames: int, objects: int, shape: tuple[int, int]) -> None:
        """Raise ``OSError`` if the disk has no room for this many frames and objects at a size of (H, W)."""
        present = sum(path.stat().st_size for path in self.folder.glob('*'))  # from the run that is continued
        size = int(BYTES * frames * objects * shape[0] * shape[1]) - present
        require_disk(self.folder, size, f'{self.folder}: keeping {frames} frames of one pass for the other')

    def __enter__(self) -> 'WaitingPass':
        self._writer = BackgroundWriter(8)
        self._writer.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._writer.__exit__(*error)

    def flush(self) -> None:
        """Wait until all files are written."""
        self._writer.flush()

    def put(self, frame: int, known: Known, shape: tuple[int, int]) -> None:
        """Store the result for a frame, reduced to the size (H, W) if it is larger."""
        planes = known.prob[1:]
        if shape[0] < planes.shape[1]:
            planes = _resized(planes, shape)
        self._writer.submit(self._write, frame, (255 * planes).round().to(torch.uint8), known.objects)

    def _write(self, frame: int, planes: Tensor, objects: list[int]) -> None:
        with atomic_path(self._path(frame)) as temporary, open(temporary, 'wb') as file:
            np.savez_compressed(file, planes=planes.cpu().numpy(), objects=np.array(objects, np.uint8))

    def get(self, frame: int, shape: tuple[int, int], device: torch.device) -> Known:
        """Read the stored result for a frame, at the frame's size (H, W)."""
        with np.load(self._path(frame)) as file:
            planes, objects = torch.from_numpy(file['planes']), file['objects'].tolist()
        planes = planes.to(device).float() / 255
        if planes.shape[1:] != shape:
            planes = _resized(planes, shape)
        return Known(torch.cat([(1 - planes.sum(dim=0, keepdim=True)).clamp(min=0), planes]), objects)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, frame: int) -> Path:
        return self.folder / f'{frame:08d}.npz'


def _resized(planes: Tensor, shape: tuple[int, int]) -> Tensor:
    """``[K, h, w] -> [K, H, W]``."""
    return F.interpolate(planes[None], shape, mode='bilinear', align_corners=False)[0]


class Propagation:
    """Takes a video through a core in one direction or in both, frame by frame.

    ``backward`` goes through the frames in reverse order, from the last frame on. ``both`` makes two passes: one
    backwards from the last annotated frame to the first frame, then one forwards from the first annotated frame on.
    Between the first and the last annotation both passes have a result: that of the backward pass is kept on the disk
    until the forward pass arrives, and :func:`blend` combines them. All other frames have the result of one pass.

    :meth:`frames` yields every frame once its result is final. With ``both``, these are first the frames before the
    first annotation, in reverse order, then the others in order. A frame of the backward pass whose result is not yet
    final is yielded as :class:`inference.stream.Passed`.

    Args:
        make_core: makes a new core for each pass; there is never more than one core at a time.
        source: the video.
        direction: ``forward``, ``backward`` or ``both``.
        folder: where results wait for the other pass. It is made when needed; :meth:`remove` deletes it.

    Attributes:
        core: the core of the current pass, or of the last one at the end.
        courses: the frames of each pass.
        course: the index of the current pass in ``courses``.
        done: how many frames of the current pass are done.
        passed: how many frames are done in all passes together.
        steps: the number of frames in all passes together; an estimate for a video file, ``None`` if it is unknown.

    Raises:
        DataError: the source can only be read forwards, or its annotations cannot be read.
        OSError: the disk has too little room for the results that have to wait.
        ValueError: there is no such direction.
    """

    def __init__(self, make_core: Callable[[], Core], source: Source, direction: Direction, folder: Path):
        if direction not in DIRECTIONS:
            raise ValueError(f'direction: expected one of {", ".join(DIRECTIONS)}, found {direction!r}')
        self.make_core = make_core
        self.direction = direction
        self.core = make_core()
        self.waiting = WaitingPass(folder)
        self.annotations = Annotations({})
        # Only the backward pass segments frames before `first`; both passes segment those from `first` to `last`.
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

    def frames(self, stopwatch: Stopwatch | None = None) -> Generator[Segmented | Passed, None, None]:
        """Yield the frames of all passes, as the class describes.

        Raises what :func:`inference.stream.propagate` raises, and ``OSError`` if a waiting result cannot be written.
        """
        for _ in self.courses[self.course :]:
            yield from self.frames_of_pass(stopwatch)

    def frames_of_pass(self, stopwatch: Stopwatch | None = None) -> Generator[Segmented | Passed, None, None]:
        """Yield the remaining frames of the current pass; then the next pass becomes the current one."""
        course = self.courses[self.course].after(self.done)
        with self.waiting:
            for found in propagate(self.core, course, stopwatch):
                self.done += 1
                self.passed += 1
                yield self._finish(found._replace(number=course.number(found.number)), course)
        self.course += 1
        if self.course < len(self.courses):
            self.done = 0
            del self.core  # before the next core is made, so that there are never two memories at a time
            self.core = self.make_core()

    @property
    def next_frame(self) -> int:
        """The number of the frame that comes next; at the end, the one after the last."""
        return self._present.number(self.done)

    @property
    def finished(self) -> range:
        """The numbers of the frames whose results are final."""
        if self._present.is_backwards:
            return range(self.next_frame + 1, self.first)
        return range(self.next_frame)

    @property
    def _present(self) -> Course:
        """The frames of the current pass; after the end, those of the last one."""
        return self.courses[min(self.course, len(self.courses) - 1)]

    def _finish(self, found: Segmented | Passed, course: Course) -> Segmented | Passed:
        """Return a frame with its final result, or as ``Passed`` if the result is not final yet."""
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
        """Wait until all waiting results are on the disk. Call it between two frames."""
        self.waiting.flush()

    def remove(self) -> None:
        """Delete the waiting results."""
        self.waiting.remove()
