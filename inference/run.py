"""The run over a dataset: frames decoded ahead, masks written behind, finished videos skipped."""

import collections
import json
import logging
import resource
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import progressbar
import torch
from torch import Tensor

from dataset.io import DataError, write_mask
from dataset.sequence import Frame, Video
from inference.config import InferenceConfig, recommended_config
from inference.core import InferenceCore, InputError
from inference.ensemble import Ensemble
from model import Network
from util.distributed import gather, rank, use_device, world_size
from util.files import atomic_path, check_writable
from util.stop import Stopped, StopRequest

log = logging.getLogger(__name__)

READ_AHEAD = 8  # frames
READERS = 2  # threads that decode images
WRITERS = 2  # threads that encode masks
WRITE_BEHIND = 32  # masks waiting to be written; probabilities are larger, and slower to write
WRITE_BEHIND_PROBS = 4
OUT_OF_MEMORY = (
    'out of GPU memory; --object_chunk helps with many objects, --max_memory_frames with long videos, '
    '--amp and a smaller --size with all'
)
SETTINGS_FILE = 'settings.json'
PROBABILITIES = 'probabilities'


@dataclass
class Summary:
    """What a run did. Seconds of ``propagation`` are the paper's: without reading and writing."""

    videos: int = 0
    frames: int = 0
    propagation: float = 0.0
    wall_clock: float = 0.0
    skipped: int = 0  # videos that were finished before
    peak_memory: int = 0  # bytes, of the GPU or else of the process
    failures: dict[str, str] = field(default_factory=dict)  # video -> cause

    def __str__(self) -> str:
        lines = [f'videos: {self.videos} segmented, {self.skipped} finished before, {len(self.failures)} failed']
        if self.frames:
            lines += [
                f'frames: {self.frames}',
                f'FPS (propagation only, of one process): {self.frames / self.propagation:.2f}',
                f'FPS (wall clock): {self.frames / self.wall_clock:.2f}',
                f'peak memory (of one process): {self.peak_memory / 2**20:.0f} MiB',
            ]
        lines += [f'failed: {name}: {cause}' for name, cause in self.failures.items()]
        return '\n'.join(lines)

    @classmethod
    def merged(cls, summaries: list['Summary']) -> 'Summary':
        """Of several processes that ran side by side."""
        return cls(
            videos=sum(each.videos for each in summaries),
            frames=sum(each.frames for each in summaries),
            propagation=sum(each.propagation for each in summaries),
            wall_clock=max(each.wall_clock for each in summaries),
            skipped=sum(each.skipped for each in summaries),
            peak_memory=max(each.peak_memory for each in summaries),
            failures={name: cause for each in summaries for name, cause in sorted(each.failures.items())},
        )


def run_dataset(
    networks: Sequence[Network],
    videos: Sequence[Video],
    output: str | Path,
    config: InferenceConfig | None = None,
    *,
    settings: Mapping[str, object] = MappingProxyType({}),
    object_chunk: int | None = None,
    overwrite: bool = False,
    save_probs: bool = False,
    archive: bool = False,
) -> Summary:
    """Segment videos and write a palette PNG for every wanted frame, ``output/folder/name.png``.

    A video whose masks are all there is skipped. One that fails (unreadable frame, wrong mask) is
    reported and the others go on; an error while writing ends the run. SIGTERM and Ctrl-C end it after
    the frame, with what is finished kept. Under torchrun every process takes a share of the videos; the
    summary is that of all of them, on each.

    Args:
        networks: what segments together, see :class:`Ensemble`; one network alone, or several.
        config: by default what the networks' checkpoints recommend.
        settings: what else determines the masks: which networks, which videos. Kept in ``output/settings.json``
            beside ``config``, so that a later run with others does not take these masks for its own.
        object_chunk: as of :class:`InferenceCore`.
        overwrite: segment finished videos again.
        save_probs: also write ``output/probabilities/folder/name.npz`` with ``prob [1 + K, H, W]`` in
            float16, the background first, and the labels ``objects [K]``.
        archive: when all videos are finished, put their masks into ``output.zip``.

    Raises:
        DataError: if ``output`` holds masks made with other settings and ``overwrite`` is false, or if masks
            would go where the videos' own files are.
        OSError: if a mask, the archive or the settings cannot be written.
        Stopped: by SIGTERM or Ctrl-C.
    """
    output = Path(output).resolve()
    device = next(networks[0].parameters()).device
    config = config or recommended_config(networks)
    settings = config.settings() | dict(settings)
    refusal = None
    if rank() == 0:  # one process, so that it does not see what the others begin to write
        try:
            _claim_output(output, videos, settings, overwrite=overwrite, archive=archive)
        except (DataError, OSError) as error:
            refusal = error
    [refusal, *_] = gather(refusal)
    if refusal is not None:
        raise refusal
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    summary = Summary()
    start = time.perf_counter()
    limit = WRITE_BEHIND_PROBS if save_probs else WRITE_BEHIND
    with (
        StopRequest('stopping after this frame; once more to stop at once') as stop,
        BackgroundWriter(limit) as writer,
        ThreadPoolExecutor(READERS, initializer=use_device, initargs=(device,)) as readers,
    ):
        for video in _progress(share(videos, rank(), world_size())):
            if all(path.exists() for path in _outputs(output, video, save_probs)):
                summary.skipped += 1
                continue
            core = Ensemble.of(networks, config, object_chunk=object_chunk, num_frames=len(video.frames))
            stopwatch = _Stopwatch(device)
            try:
                for frame, prob in propagate(core, video, readers, stopwatch):
                    # Asked here, so that no exception falls between the locks of the threads.
                    if stop.signal:
                        raise Stopped(stop.signal)
                    if prob is None:
                        continue
                    writer.submit(_write_labels, _mask_path(output, video, frame), core.to_labels(prob))
                    if save_probs:
                        writer.submit(_write_prob, _prob_path(output, video, frame), prob.half(), core.objects)
            except (DataError, InputError, torch.OutOfMemoryError) as error:
                cause = str(error)
                if isinstance(error, torch.OutOfMemoryError):
                    cause = f'{OUT_OF_MEMORY} ({cause.splitlines()[0]})'
                log.error('%s: %s', video.name, cause)
                summary.failures[video.name] = cause
                continue
            if not core.objects:
                log.warning('%s: nothing to segment, its annotation is empty', video.name)
            summary.videos += 1
            summary.frames += len(video.frames)
            summary.propagation += stopwatch.seconds()
    if stop.signal:
        raise Stopped(stop.signal)
    summary.wall_clock = time.perf_counter() - start
    summary.peak_memory = peak_memory(device)
    summary = Summary.merged(gather(summary))
    if archive and rank() == 0:
        if summary.failures:
            log.error('no archive, since videos failed')
        else:
            _write_archive(output, videos)
    return summary


def peak_memory(device: torch.device) -> int:
    """Bytes: of a GPU since its statistics were reset, else of the process since it began."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    # Linux counts kilobytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def share(videos: Sequence[Video], rank: int, world_size: int) -> list[Video]:
    """The videos of one process: the longest ones first, each to the process with the fewest frames so far."""
    frames = [0] * world_size
    taken = [[] for _ in frames]
    for video in sorted(videos, key=lambda video: -len(video.frames)):
        process = frames.index(min(frames))
        frames[process] += len(video.frames)
        taken[process].append(video)
    return taken[rank]


def propagate(
    core: InferenceCore | Ensemble,
    video: Video,
    readers: ThreadPoolExecutor,
    stopwatch: '_Stopwatch | None' = None,
) -> Iterator[tuple[Frame, Tensor | None]]:
    """Every frame of a video with the probabilities that ``core.step`` returns for it.

    Images are decoded ahead by ``readers`` in a window of fixed length, so that nothing holds the
    whole video; those that the schedule skips are not decoded.
    """
    stopwatch = stopwatch or _Stopwatch(core.device)
    with closing(_read_ahead(core, video, readers)) as inputs:
        for frame, last, image, mask in inputs:
            with stopwatch:
                prob = core.step(image, mask, frame.objects, wanted=frame.wanted, last=last)
            yield frame, prob


class _Input(NamedTuple):
    """What ``core.step`` is given of a frame."""

    frame: Frame
    last: bool
    image: Tensor | None
    mask: Tensor | None


def _read_ahead(core: InferenceCore | Ensemble, video: Video, readers: ThreadPoolExecutor) -> Iterator[_Input]:
    """The frames of a video in their order, of which the next READ_AHEAD are being decoded."""
    plan = core.schedule.copy()
    pending: collections.deque[tuple[tuple, Future]] = collections.deque()
    try:
        for position, frame in enumerate(video.frames, 1):
            last = position == len(video.frames)
            computed = plan.advance(annotated=frame.mask is not None, wanted=frame.wanted, last=last).compute
            future = readers.submit(_read, video, frame, computed or frame.wanted, core.device)
            pending.append(((frame, last), future))
            while len(pending) > (0 if last else READ_AHEAD):
                known, future = pending.popleft()
                yield _Input(*known, *future.result())
    finally:
        for _, future in pending:
            future.cancel()


def _read(video: Video, frame: Frame, decode: bool, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Image ``[3, H, W]`` (``None`` if not to be decoded) and mask ``[H, W]``, pinned if they go to a GPU."""
    if not decode:
        return None, None
    image = torch.from_numpy(video.read_image(frame)).permute(2, 0, 1)
    mask = video.read_mask(frame, tuple(image.shape[1:]))
    if device.type == 'cuda':
        image = image.pin_memory()
    return image, None if mask is None else torch.from_numpy(mask)


def _mask_path(output: Path, video: Video, frame: Frame) -> Path:
    return output / video.folder / f'{frame.name}.png'


def _prob_path(output: Path, video: Video, frame: Frame) -> Path:
    return output / PROBABILITIES / video.folder / f'{frame.name}.npz'


def _outputs(output: Path, video: Video, save_probs: bool) -> Iterator[Path]:
    for frame in video.frames:
        if frame.wanted:
            yield _mask_path(output, video, frame)
            if save_probs:
                yield _prob_path(output, video, frame)


def _write_labels(path: Path, labels: Tensor) -> None:
    write_mask(path, labels.cpu().numpy())


def _write_prob(path: Path, prob: Tensor, objects: list[int]) -> None:
    with atomic_path(path) as temporary, open(temporary, 'wb') as file:
        np.savez_compressed(file, prob=prob.cpu().numpy(), objects=np.array(objects, np.uint8))


def _archive_path(output: Path) -> Path:
    return output.with_name(f'{output.name}.zip')


def _write_archive(output: Path, videos: Sequence[Video]) -> None:
    """``output.zip`` with the masks as a server takes them: ``<video>/<frame>.png`` (DAVIS) or below Annotations."""
    path = _archive_path(output)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, 'w') as archive:
        for video in videos:
            for mask in _outputs(output, video, False):
                # No time stamp: the same masks give the same archive. PNGs do not get smaller.
                archive.writestr(zipfile.ZipInfo(str(mask.relative_to(output))), mask.read_bytes())
    log.info('archive: %s', path)


def _claim_output(output: Path, videos: Sequence[Video], settings: dict, *, overwrite: bool, archive: bool) -> None:
    """Make the output folder this run's, or refuse: it may hold ground truth, or another network's masks."""
    path = output / SETTINGS_FILE
    folders = {output / video.folder for video in videos}
    sources = {
        file.parent.resolve()
        for video in videos
        for frame in video.frames
        for file in (frame.image, frame.mask)
        if file is not None
    }
    if taken := folders & sources:
        raise DataError(f'{min(taken)}: masks would go where files of the dataset are; choose another --output')
    if not overwrite:
        try:
            found = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            found = None
        except ValueError as error:
            raise DataError(f'{path}: no readable JSON ({error}); use --overwrite or another --output') from error
        if found is None and output.is_dir() and any(not entry.name.startswith('.') for entry in output.iterdir()):
            raise DataError(
                f'{output}: is not empty, and has no {SETTINGS_FILE} that would say that its masks '
                'are those of an earlier run; choose another --output, or an empty folder'
            )
        if found not in (None, settings):
            changes = [
                f'{name} was {found.get(name)}, is {settings.get(name)}'
                for name in sorted({*found, *settings})
                if found.get(name) != settings.get(name)
            ]
            raise DataError(
                f'{output}: holds masks of other settings ({"; ".join(changes)}); use --overwrite or another --output'
            )
    check_writable(path)
    if archive:  # it comes last, and lies beside the folder
        check_writable(_archive_path(output))
    if overwrite:
        # At once, so that an interrupted run leaves no mask of the old ones for a finished new one.
        if archive:
            _archive_path(output).unlink(missing_ok=True)
        for folder in folders:
            probabilities = output / PROBABILITIES / folder.relative_to(output)
            for written in (*folder.glob('*.png'), *probabilities.glob('*.npz')):
                written.unlink()
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + '\n')


def _progress(videos: Sequence[Video]) -> Iterator[Video]:
    """A progress bar on a terminal, else a line a video."""
    if sys.stderr.isatty() and rank() == 0:
        yield from progressbar.progressbar(videos, redirect_stdout=True)
        return
    for index, video in enumerate(videos, 1):
        log.info('%d/%d %s: %d frames', index, len(videos), video.name, len(video.frames))
        yield video


class BackgroundWriter:
    """Encodes and writes files in the background; an error ends the run at the next ``submit`` or the end.

    At most ``limit`` files wait to be written. With one thread they are written in their order.
    """

    def __init__(self, limit: int, *, threads: int = WRITERS):
        self.limit = limit
        self.pool = ThreadPoolExecutor(threads)
        self.pending: collections.deque[Future] = collections.deque()

    def __enter__(self) -> 'BackgroundWriter':
        return self

    def submit(self, write: Callable[..., None], *args: object) -> None:
        """Call ``write(*args)`` in the background. It fetches tensors itself, so that nobody else waits for a GPU."""
        while self.pending and (len(self.pending) >= self.limit or self.pending[0].done()):
            self.pending.popleft().result()
        self.pending.append(self.pool.submit(write, *args))

    def __exit__(self, error_type, *_) -> None:
        # What waits when a stop comes may complete a video.
        self.pool.shutdown(cancel_futures=error_type not in (None, Stopped))
        if error_type is None:
            for future in self.pending:
                future.result()


class _Stopwatch:
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
