"""One stream of frames through a core: read ahead, propagate, hand on; progress, stopping and too little memory."""

import logging
import resource
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inference.core import Core, InputError
from inference.sources import Picture, Source, Upcoming
from util.distributed import use_device
from util.errors import UserError, cause_of
from util.stop import StopRequest

if TYPE_CHECKING:
    from inference.outputs import Outputs

log = logging.getLogger(__name__)

READ_AHEAD = 8  # frames
LOG_SECONDS = 10
STOPPING = 'stopping after this frame; once more to stop at once'


class TooLittleMemoryError(UserError):
    """The GPU is full. The message says what takes less of its memory, by the names of options and flags."""


@contextmanager
def enough_memory() -> Iterator[None]:
    """Too little memory inside the block is a :class:`TooLittleMemoryError`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TooLittleMemoryError(
            'out of GPU memory; object_chunk helps with many objects, max_memory_frames with long videos, amp and a '
            f'smaller size with all ({cause_of(error)})'
        ) from error


class Segmented(NamedTuple):
    """A frame whose segmentation was asked for."""

    number: int
    name: str
    wanted: Literal[True]
    image: np.ndarray  # uint8 [H, W, 3] RGB
    pts: int
    prob: Tensor  # [1 + K, H, W], the background first
    labels: Tensor  # uint8 [H, W]
    objects: list[int]  # the labels of prob[1:]


class Passed(NamedTuple):
    """A frame whose segmentation was not asked for. The core has seen it if it has an image."""

    number: int
    name: str
    wanted: Literal[False]
    image: np.ndarray | None  # uint8 [H, W, 3] RGB


def propagate(
    core: Core, source: Source, stopwatch: 'Stopwatch | None' = None
) -> Generator[Segmented | Passed, None, None]:
    """Every frame of a source, and what the core says of those whose segmentation is asked for.

    Frames are read ahead in a window of fixed length, so that nothing holds the whole video; those that the schedule
    skips are not read.

    Raises:
        DataError: a frame cannot be read.
        InputError: it has another size.
        TooLittleMemoryError: of the GPU.
    """
    with closing(_read_ahead(core, source)) as frames:
        for number, (frame, picture, image, mask) in enumerate(frames):
            with enough_memory():
                try:
                    with stopwatch or nullcontext():
                        prob = core.step(image, mask, frame.objects, wanted=frame.wanted, last=frame.last)
                except InputError as error:
                    raise InputError(f'{frame.origin}: {error}') from error
                labels = None if prob is None else core.to_labels(prob)
            if prob is None or labels is None:
                yield Passed(number, frame.name, False, None if picture is None else picture.image)
                continue
            assert picture is not None  # a frame that is asked for is read
            yield Segmented(number, frame.name, True, picture.image, picture.pts, prob, labels, core.objects)


Read = tuple[Picture | None, Tensor | None, Tensor | None]  # and its image and mask as the core takes them


def _read_ahead(core: Core, source: Source) -> Generator[tuple[Upcoming, *Read], None, None]:
    """The frames of a source in their order. Meanwhile the next READ_AHEAD frames are being read."""
    plan = core.schedule.copy()
    pending: deque[tuple[Upcoming, Future[Read] | None]] = deque()
    with ThreadPoolExecutor(source.readers, initializer=use_device, initargs=(core.device,)) as readers:
        try:
            for frame in source:
                step = plan.advance(annotated=frame.annotated, wanted=frame.wanted, last=frame.last)
                needed = step.compute or frame.wanted
                pending.append((frame, readers.submit(_read, frame, core.device) if needed else None))
                while len(pending) > (0 if frame.last else READ_AHEAD):
                    upcoming, future = pending.popleft()
                    read = (None, None, None) if future is None else future.result()
                    if future is not None and read[0] is None:  # the video has ended
                        return
                    yield upcoming, *read
        finally:
            for _, future in pending:
                if future is not None:
                    future.cancel()


def _read(frame: Upcoming, device: torch.device) -> Read:
    """Picture, image ``[3, H, W]`` and mask ``[H, W]``; the image pinned if it goes to a GPU."""
    if (picture := frame.read()) is None:
        return None, None, None
    image = torch.from_numpy(picture.image).permute(2, 0, 1)
    if device.type == 'cuda':
        image = image.pin_memory()
    return picture, image, None if picture.mask is None else torch.from_numpy(picture.mask)


def segment(
    frames: Generator[Segmented | Passed, None, None], outputs: 'Outputs', *, stop: StopRequest, progress: 'Progress'
) -> None:
    """Write every frame, up to the one at which ``stop`` was asked for. Raises as :func:`propagate`."""
    with closing(frames):
        for frame in frames:
            with enough_memory():
                outputs.write(frame)
            progress.advance()
            # Asked here, so that no exception falls between the locks of the threads.
            if stop.signal:
                return


class Progress:
    """Frames that are done: a bar on a terminal, else a line every ten seconds; with the time left where it is known.

    Args:
        total: frames, as far as is known.
        done: of them, by an earlier run.
        bar: whether there may be a bar: one process shows one.
    """

    def __init__(self, total: int | None, *, done: int = 0, bar: bool = True):
        self.total = total
        self.done = self.count = done
        self.with_bar = bar and sys.stderr.isatty()

    def __enter__(self) -> 'Progress':
        self.start = self.logged = time.monotonic()
        self.bar = None
        if self.with_bar:
            import progressbar

            self.bar = progressbar.ProgressBar(max_value=self.total or progressbar.UnknownLength, max_error=False)
        return self

    def advance(self) -> None:
        """One more frame is done."""
        self.count += 1
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.count)
        elif now - self.logged >= LOG_SECONDS:
            self.logged = now
            rate = (self.count - self.done) / (now - self.start)
            left = max(0, round(((self.total or 0) - self.count) / rate))
            log.info(
                'frame %d%s, %.1f FPS%s',
                self.count,
                f' of {self.total}' if self.total else '',
                rate,
                f', {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left' if self.total else '',
            )

    def say(self, message: str, *values: object) -> None:
        """A line where there is no bar."""
        if self.bar is None:
            log.info(message, *values)

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.finish(dirty=True)


class Stopwatch:
    """Seconds spent in its ``with`` blocks: of the device's work, measured without waiting for it."""

    def __init__(self, device: torch.device):
        self.device = device
        self.elapsed = 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self.device.type == 'cuda':
            self.events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self.events[-1][0].record(torch.cuda.current_stream(self.device))
        else:
            self.start = time.perf_counter()

    def __exit__(self, *_) -> None:
        if self.device.type == 'cuda':
            self.events[-1][1].record(torch.cuda.current_stream(self.device))
        else:
            self.elapsed += time.perf_counter() - self.start

    def seconds(self) -> float:
        """So far; waits for a GPU to finish."""
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
            return sum(start.elapsed_time(end) for start, end in self.events) / 1000
        return self.elapsed


def peak_memory(device: torch.device) -> int:
    """Bytes: of a GPU since its statistics were reset, else of the process since it began."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    # Linux counts kilobytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
