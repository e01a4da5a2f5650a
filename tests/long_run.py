"""Segments a video of many thousand frames and checks that memory, files, threads and time a frame do not grow.

    python tests/long_run.py --frames 20000

Frames are read ahead, segmented with a bounded memory, and written in the background, as ``inference.run`` does it.
Three objects appear in the warm-up. After it they take turns to leave (an object is annotated as empty) and to come
back (its mask is given again). The first thousand frames after the warm-up are compared with the last thousand; the
exit status is 1 if anything has grown or slowed down.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from dataset.io import read_mask, write_mask
from dataset.sequence import Frame, Video
from inference.core import InferenceCore
from inference.outputs import WRITERS, Masks, Outputs
from inference.sources import READERS, DatasetSource
from inference.stream import READ_AHEAD, propagate
from model import build_network
from tests.conftest import FRAMES, GOLDEN
from tests.tiny import TINY

LABELS = (1, 2, 3)
EVERY = 10  # frames between two samples of the process
COUNT_EVERY = 250  # frames between two counts of its tensors; a count takes a tenth of a second
SLACK = 4 * 2**20  # bytes by which the process may grow, since the heap gets fragmented
POOLS = READERS + WRITERS - 2  # threads that may be added, since a pool starts some only under load
PENDING = 2 * READ_AHEAD + Masks.behind  # tensors that may be added, since more or fewer frames wait
SLOWER = 1.25  # how many times more CPU a frame may take; other work on the machine makes it vary


@dataclass(frozen=True)
class Sample:
    """What a process holds at a frame."""

    frame: int
    resident: int  # bytes
    files: int  # open descriptors
    threads: int
    tensors: int  # live tensors at the last count
    memory_frames: int
    memory_bytes: int  # of the memory bank, reserved space included
    cpu: float  # seconds, of all threads
    clock: float

    @classmethod
    def take(cls, frame: int, core: InferenceCore, tensors: int) -> 'Sample':
        """Measure this process now. Needs /proc, which Linux has."""
        pages = int(Path('/proc/self/statm').read_text().split()[1])
        return cls(
            frame,
            pages * os.sysconf('SC_PAGE_SIZE'),
            len(os.listdir('/proc/self/fd')),
            len(os.listdir('/proc/self/task')),
            tensors,
            len(core.memory),
            core.memory.nbytes,
            time.process_time(),
            time.perf_counter(),
        )


def count_tensors() -> int:
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(TINY).eval().optimize_()


def write_annotations(folder: Path) -> dict[int | None, Path]:
    """Write a mask of each object alone, and an empty one: label or ``None`` -> file."""
    labels = read_mask(GOLDEN / 'first_mask.png')
    paths = {}
    for label in (*LABELS, None):
        paths[label] = folder / f'given-{label}.png'
        write_mask(paths[label], np.where(labels == label, labels, 0).astype(np.uint8))
    return paths


def looping_video(folder: Path, *, frames: int, warm_up: int, events: int) -> Video:
    """Repeat the clip of the tests. After the warm-up, an object leaves or comes back ``events`` times."""
    given = write_annotations(folder)
    annotations = {
        number * (warm_up // (2 * len(LABELS))): (label, given[label]) for number, label in enumerate(LABELS)
    }
    period = (frames - warm_up) // events
    for event in range(events):
        label = LABELS[event // 2 % len(LABELS)]
        annotations[warm_up + event * period] = label, given[None if event % 2 == 0 else label]
    listed = []
    for number in range(frames):
        label, mask = annotations.get(number, (None, None))
        listed.append(Frame(f'{number % 100:05d}', FRAMES[number % len(FRAMES)], mask, label and (label,)))
    return Video('loop', 'loop', tuple(listed))


def drive(core: InferenceCore, video: Video, folder: Path, look: Callable[[int], None]) -> None:
    """Segment the video, and call ``look`` after each frame. Masks go to ``folder`` under a hundred names in turn."""
    with Outputs([Masks(folder)]) as outputs:
        for frame in propagate(core, DatasetSource(video)):
            outputs.write(frame)
            look(frame.number)


def samples(
    *,
    frames: int,
    warm_up: int,
    size: int,
    max_memory_frames: int,
    events: int,
    count_every: int = COUNT_EVERY,
) -> list[Sample]:
    core = InferenceCore(network(), size=size, max_memory_frames=max_memory_frames, num_frames=frames)
    taken: list[Sample] = []

    def look(number: int) -> None:
        if number % EVERY == 0:
            tensors = count_tensors() if number % count_every == 0 else taken[-1].tensors
            taken.append(Sample.take(number, core, tensors))

    with tempfile.TemporaryDirectory() as folder:
        video = looping_video(Path(folder), frames=frames, warm_up=warm_up, events=events)
        drive(core, video, Path(folder), look)
    return taken


def compare(taken: list[Sample], *, warm_up: int, window: int) -> Iterator[tuple[str, float, float, float]]:
    """Yield the name of each measure, its value after the warm-up, its last value, and the limit of the last value."""
    last = taken[-1].frame
    begin = [sample for sample in taken if warm_up <= sample.frame <= warm_up + window]
    end = [sample for sample in taken if last - window <= sample.frame]
    for name, unit, slack in (
        ('resident', 2**20, SLACK),
        ('files', 1, READERS + WRITERS),
        ('threads', 1, POOLS),
        ('tensors', 1, PENDING),
        ('memory_frames', 1, 0),
        ('memory_bytes', 2**20, 0),
    ):
        before, after = (max(getattr(sample, name) for sample in part) / unit for part in (begin, end))
        yield name, before, after, before + slack / unit
    for name in ('cpu', 'clock'):
        before, after = (
            1000 * (getattr(part[-1], name) - getattr(part[0], name)) / (part[-1].frame - part[0].frame)
            for part in (begin, end)
        )
        yield name, before, after, before * SLOWER if name == 'cpu' else float('inf')


TITLES = {
    'resident': 'resident memory, MiB',
    'files': 'open files',
    'threads': 'threads',
    'tensors': 'live tensors',
    'memory_frames': 'memory frames',
    'memory_bytes': 'memory bank, MiB',
    'cpu': 'CPU a frame, ms',
    'clock': 'wall clock a frame, ms',
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--frames', type=int, default=20_000, help='default: %(default)s')
    add('--warm_up', type=int, default=1000, help='frames; default: %(default)s')
    add('--window', type=int, default=1000, help='frames that are compared; default: %(default)s')
    add('--size', type=int, default=48, help='shorter side at which the network works; default: %(default)s')
    add('--max_memory_frames', type=int, default=64, help='default: %(default)s')
    add(
        '--events',
        type=int,
        default=48,
        help='objects that leave or come back. Annotated frames are never evicted: '
        'with more than --max_memory_frames of them the memory grows as it should; default: %(default)s',
    )
    args = parser.parse_args()
    if args.frames < args.warm_up + 2 * args.window:
        parser.error('--frames: expected at least the warm-up and two windows')

    torch.set_num_threads(1)
    taken = samples(
        frames=args.frames,
        warm_up=args.warm_up,
        size=args.size,
        max_memory_frames=args.max_memory_frames,
        events=args.events,
    )
    failed = False
    print(
        f'| of {args.frames:,} frames | first {args.window:,} after {args.warm_up:,} | last {args.window:,} | ratio '
        '|  |\n|---|---:|---:|---:|---|'
    )
    for name, before, after, limit in compare(taken, warm_up=args.warm_up, window=args.window):
        failed |= after > limit
        print(
            f'| {TITLES[name]} | {before:.4g} | {after:.4g} | {after / before:.3f} | '
            f'{"" if after <= limit else f"more than {limit:.4g}"} |'
        )
    print(f'CPU {taken[-1].cpu:.0f} s, wall clock {taken[-1].clock - taken[0].clock:.0f} s')
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
