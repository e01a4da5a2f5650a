"""Runs the frames of a source through a core: reading ahead, progress, stopping, and out-of-memory errors."""

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
STOPPING = 'stopping after this frame; Ctrl-C again stops at once'


class TooLittleMemoryError(UserError, MemoryError):
    """The GPU, or the CPU if the network runs there, has too little memory. The message names what needs less."""


@contextmanager
def enough_memory() -> Iterator[None]:
    """Turn an out-of-memory error in the block into a :class:`TooLittleMemoryError`."""
    try:
        yield
    except RuntimeError as error:
        of_gpu = isinstance(error, torch.OutOfMemoryError)
        if not of_gpu and 'DefaultCPUAllocator' not in str(error):  # PyTorch has no exception for the CPU's memory
            raise
        raise TooLittleMemoryError(
            f'out of {"GPU " if of_gpu else ""}memory; object_chunk helps with many objects, max_memory_frames with '
            f'long videos, amp and a smaller size always ({cause_of(error)})'
        ) from error


class Segmented(NamedTuple):
    """A frame whose segmentation was asked for, with the result."""

    number: int
    name: str
    wanted: Literal[True]
    image: np.ndarray  # uint8 [H, W, 3] RGB
    pts: int  # when it is shown, in ticks of the source's time base
    prob: Tensor  # [1 + K, H, W], the background first
    labels: Tensor  # uint8 [H, W]
    objects: list[int]  # the labels of prob[1:]


class Passed(NamedTuple):
    """A frame whose segmentation was not asked for. If it has an image, the frame was read."""

    number: int
    name: str
    wanted: Literal[False]
    image: np.ndarray | None  # uint8 [H, W, 3] RGB


def propagate(
    core: Core, source: Source, stopwatch: 'Stopwatch | None' = None
) -> Generator[Segmented | Passed, None, None]:
    """Give every frame of a source to the core, and yield it with its segmentation if that is asked for.

    The next ``READ_AHEAD`` frames are read in the background, so that memory never holds the whole video. Frames that
    the schedule skips are not read.

    Raises:
        DataError: a frame cannot be read.
        InputError: a frame differs in size from the frames before.
        TooLittleMemoryError: there is too little memory.
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


Read = tuple[Picture | None, Tensor | None, Tensor | None]  # the picture, and its image and mask as tensors


def _read_ahead(core: Core, source: Source) -> Generator[tuple[Upcoming, *Read], None, None]:
    """Yield the frames of a source in order, while threads read the next ``READ_AHEAD`` frames."""
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
    """Read a frame: its picture, image ``[3, H, W]`` and mask ``[H, W]``. The image is pinned if it goes to a GPU."""
    if (picture := frame.read()) is None:
        return None, None, None
    image = torch.from_numpy(picture.image).permute(2, 0, 1)
    if device.type == 'cuda':
        image = image.pin_memory()
    return picture, image, None if picture.mask is None else torch.from_numpy(picture.mask)


def segment(
    frames: Generator[Segmented | Passed, None, None], outputs: 'Outputs', *, stop: StopRequest, progress: 'Progress'
) -> None:
    """Write every frame until the end, or until ``stop`` is requested. Raises what :func:`propagate` raises."""
    with closing(frames):
        for frame in frames:
            with enough_memory():
                outputs.write(frame)
            progress.advance()
            # The request is checked here, since an exception from a signal could leave locks of the threads held.
            if stop.signal:
                return


class Progress:
    """Shows how many frames are done, and the time left if the total is known.

    On a terminal this is a progress bar, elsewhere a log line every ten seconds.

    Args:
        total: the number of frames, or an estimate; ``None`` if it is unknown.
        done: how many of them an earlier run has done.
        bar: whether a bar may be shown. Of several processes, only one shows it.
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
        """Count one more frame as done."""
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
        """Log a line, unless there is a bar."""
        if self.bar is None:
            log.info(message, *values)

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.finish(dirty=True)


class Stopwatch:
    """Measures the time that a device works in ``with`` blocks, without making the program wait for a GPU."""

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
        """The seconds measured so far. Waits for a GPU to finish."""
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
            return sum(start.elapsed_time(end) for start, end in self.events) / 1000
        return self.elapsed


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of a GPU since its statistics were reset, otherwise of the process since it began."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in kilobytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
