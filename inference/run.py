"""Runs over a dataset: shares the videos among processes, skips finished ones, and reports those that fail."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch

from dataset.sequence import Video
from inference.config import InferenceConfig, recommended_config
from inference.directions import Propagation, WaitingPass
from inference.ensemble import Ensemble
from inference.outputs import (
    PROBABILITIES,
    FilePerFrame,
    Masks,
    OutputError,
    Outputs,
    Probabilities,
    archive_of,
    claim,
    write_archive,
)
from inference.sources import DatasetSource, Direction
from inference.stream import STOPPING, Progress, Stopwatch, peak_memory, segment
from model import Network
from util.distributed import gather, rank, world_size
from util.errors import UserError
from util.stop import Stopped, StopRequest

log = logging.getLogger(__name__)

WAITING = '.waiting'  # folder in the output folder where results of one pass over a video wait for the other

AnyVideo = TypeVar('AnyVideo', bound=Video)


@dataclass
class Summary:
    """The result of a run in numbers."""

    videos: int = 0  # videos that were segmented
    frames: int = 0  # frames of these videos; one that both passes segment counts once
    propagation: float = 0.0  # seconds without reading and writing, as the paper measures
    wall_clock: float = 0.0  # seconds
    skipped: int = 0  # videos that were finished before
    peak_memory: int = 0  # bytes, of the GPU if there is one, otherwise of the process
    failures: dict[str, str] = field(default_factory=dict)  # video -> cause
    refusals: list[str] = field(default_factory=list)  # why a server would refuse the masks, if that was checked

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
        lines += [f'a server would not take the masks: {cause}' for cause in self.refusals]
        return '\n'.join(lines)

    @classmethod
    def merged(cls, summaries: list['Summary']) -> 'Summary':
        """Combine the summaries of several processes that ran at the same time."""
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
    direction: Direction = 'forward',
    object_chunk: int | None = None,
    overwrite: bool = False,
    save_probs: bool = False,
    archive: bool = False,
) -> Summary:
    """Segment videos and write a palette PNG for every wanted frame, ``output/folder/name.png``.

    For binary videos (DAVIS 2016) it is a grayscale PNG of 0 and 255, as their official evaluation expects.

    A video that has all its masks is skipped. If a video fails (unreadable frame, wrong mask), this is
    reported and the run goes on with the others; an error while writing ends the run. SIGTERM and Ctrl-C
    end the run after the current frame, and finished masks are kept. Under torchrun every process takes a
    share of the videos; each process returns the summary of all of them.

    Args:
        networks: one network, or several that are averaged (:class:`Ensemble`).
        videos: the videos to segment.
        output: the folder for the masks.
        config: by default what the networks' checkpoints recommend.
        settings: what else determines the masks: which networks, which videos. It is written to
            ``output/settings.json`` with ``config``, so that no later run with other settings keeps these masks.
        direction: see :class:`inference.directions.Propagation`.
        object_chunk: see :class:`InferenceCore`.
        overwrite: segment finished videos again.
        save_probs: also write ``output/probabilities/folder/name.npz``, see :class:`Probabilities`.
        archive: when all videos are finished, put their masks into ``output.zip``.

    Raises:
        OutputError: ``output`` holds masks made with other settings and ``overwrite`` is false, or masks
            would be written where the videos' own files are.
        OSError: a mask, the archive or the settings cannot be written.
        Stopped: the run was ended by SIGTERM or Ctrl-C.
    """
    output = Path(output).resolve()
    device = networks[0].device
    config = config or recommended_config(networks)
    binary = any(video.binary for video in videos)
    masks = Masks(output, binary=binary)
    settings = config.settings() | dict(settings) | ({'format': 'grayscale 0 and 255'} if binary else {})
    if direction != 'forward':
        settings['direction'] = direction
    files: list[FilePerFrame] = [masks, Probabilities(output / PROBABILITIES)] if save_probs else [masks]
    archive_path = archive_of(output) if archive else None
    refusal = None
    if rank() == 0:  # only one process checks the folder, so that it does not see the first files of the others
        try:
            _claim(output, videos, settings, overwrite=overwrite, archive=archive_path)
        except (OutputError, OSError) as error:
            refusal = error
    [refusal, *_] = gather(refusal)
    if refusal is not None:
        raise refusal
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    summary = Summary()
    start = time.perf_counter()
    finished: list[DatasetSource] = []
    mine: list[DatasetSource] = []
    for source in map(DatasetSource, share(videos, rank(), world_size())):
        done = all(each.path(name).exists() for name in source.video.wanted for each in files)
        (finished if done else mine).append(source)
    summary.skipped = len(finished)
    total = sum(source.frames for source in mine)
    with (
        StopRequest(STOPPING) as stop,
        Outputs(files) as outputs,
        Progress(total, bar=rank() == 0) as progress,
    ):
        for index, source in enumerate(mine, 1):
            progress.say('%d/%d %s: %d frames', index, len(mine), source.name, source.frames)
            make_core = partial(Ensemble.of, networks, config, object_chunk=object_chunk, num_frames=source.frames)
            stopwatch = Stopwatch(device)
            waiting = output / WAITING / source.video.folder
            try:
                way = Propagation(make_core, source, direction, waiting)
                progress.total = total = total + (way.steps or source.frames) - source.frames
                segment(way.frames(stopwatch), outputs, stop=stop, progress=progress)
            except UserError as error:
                log.error('%s: %s', source.name, error)
                summary.failures[source.name] = str(error)
                continue
            finally:
                WaitingPass(waiting).remove()
                with suppress(OSError):  # the folder is still used by another process, or does not exist
                    waiting.parent.rmdir()
            if stop.signal:
                raise Stopped(stop.signal)
            if not way.core.objects:
                log.warning('%s: nothing was segmented, because its annotation shows no object', source.name)
            summary.videos += 1
            summary.frames += len(way.finished)
            summary.propagation += stopwatch.seconds()
    if stop.signal:
        raise Stopped(stop.signal)
    summary.wall_clock = time.perf_counter() - start
    summary.peak_memory = peak_memory(device)
    summary = Summary.merged(gather(summary))
    if archive_path is not None and rank() == 0:
        if summary.failures:
            log.error('the archive was not written, because some videos failed')
        else:
            write_archive(archive_path, masks, (name for video in videos for name in video.wanted))
            log.info('archive: %s', archive_path)
    return summary


def share(videos: Sequence[AnyVideo], rank: int, world_size: int) -> list[AnyVideo]:
    """The videos of one process. Videos are assigned by length, longest first, to the process with fewest frames."""
    frames = [0] * world_size
    taken: list[list[AnyVideo]] = [[] for _ in frames]
    for video in sorted(videos, key=lambda video: -len(video.frames)):
        process = frames.index(min(frames))
        frames[process] += len(video.frames)
        taken[process].append(video)
    return taken[rank]


def _claim(output: Path, videos: Sequence[Video], settings: dict, *, overwrite: bool, archive: Path | None) -> None:
    folders = sorted({video.folder for video in videos})
    inputs = {
        file.parent
        for video in videos
        for frame in video.frames
        for file in (frame.image, frame.mask)
        if file is not None
    }
    claim(
        output,
        settings,
        places=[output / folder for folder in folders],
        inputs=inputs,
        files=lambda: [
            file
            for folder in folders
            for place, pattern in ((output, '*.png'), (output / PROBABILITIES, '*.npz'))
            for file in (place / folder).glob(pattern)
        ],
        overwrite=overwrite,
        resume=True,
        archive=archive,
    )
