"""One stream: frames are read a little ahead of the core, from whatever source, and nothing holds the video."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from dataset.davis import davis
from dataset.io import DataError
from dataset.mask_files import GivenMask
from inference import InferenceCore
from inference.outputs import Masks, Outputs
from inference.sources import DatasetSource, FolderSource, Picture, Source, Upcoming
from inference.stream import READ_AHEAD, Progress, TooLittleMemoryError, propagate, segment
from tests.conftest import FRAMES, GOLDEN, tree
from util.stop import StopRequest


class Endless(Source):
    """Repeats the clip, with an end that is not known before; it is read in one thread."""

    name, frames = 'endless', None

    def __init__(self, images, mask, *, end: int, broken: int | None = None):
        self.images, self.mask, self.end, self.broken = images, mask, end, broken
        self.read = 0

    def __iter__(self):
        number = 0
        while True:
            yield Upcoming(f'{number:05d}', lambda number=number: self._read(number), annotated=number == 0)
            number += 1

    def _read(self, number: int) -> Picture | None:
        if number == self.broken:
            raise DataError('bad frame')
        if number >= self.end:
            return None
        self.read += 1
        image = self.images[number % len(self.images)].permute(1, 2, 0).contiguous().numpy()
        return Picture(image, self.mask.numpy() if number == 0 else None, number)


def test_a_video_whose_end_nobody_knows(small_network, clip, first_mask):
    source = Endless(clip, first_mask, end=30)
    core = InferenceCore(small_network, size=32)
    for frame in propagate(core, source):
        assert source.read <= frame.number + 1 + READ_AHEAD
        assert (frame.name, frame.pts) == (f'{frame.number:05d}', frame.number)
        assert torch.equal(frame.labels, core.to_labels(frame.prob))
    assert (frame.number, source.read) == (29, 30)


def test_frames_before_one_that_cannot_be_read(small_network, clip, first_mask):
    frames = propagate(InferenceCore(small_network, size=32), Endless(clip, first_mask, end=30, broken=3))
    assert [next(frames).number for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match='bad frame'):
        next(frames)


def test_a_dataset_is_not_held(davis_root, small_network, monkeypatch):
    """No more than the window of frames is read ahead of the one that is computed."""
    [video, _] = davis(davis_root)
    long = type(video)(video.name, video.folder, video.frames[:1] + video.frames[1:] * 20)
    reads = []
    read = DatasetSource._read
    monkeypatch.setattr(DatasetSource, '_read', lambda *args: reads.append(1) or read(*args))
    for frame in propagate(InferenceCore(small_network, size=32), DatasetSource(long)):
        assert len(reads) <= frame.number + 1 + READ_AHEAD
    assert len(reads) == len(long.frames)


def test_a_folder_and_a_dataset_give_the_same(small_network, tmp_path):
    source = FolderSource(GOLDEN / 'clip', fps=Fraction(25))
    source.annotate([GivenMask((GOLDEN / 'first_mask.png',))])
    with StopRequest() as stop, Outputs([Masks(tmp_path)]) as outputs, Progress(source.frames) as progress:
        segment(propagate(InferenceCore(small_network), source), outputs, stop=stop, progress=progress)
    assert progress.count == len(FRAMES) == len(tree(tmp_path))


def test_a_stop_ends_after_the_frame(small_network, clip, first_mask, tmp_path):
    source = Endless(clip, first_mask, end=1000)
    with StopRequest() as stop, Outputs([Masks(tmp_path)]) as outputs, Progress(None) as progress:
        write = outputs.write

        def stopping(frame):
            write(frame)
            stop.signal = 15 if frame.number == 4 else 0

        outputs.write = stopping
        segment(propagate(InferenceCore(small_network, size=32), source), outputs, stop=stop, progress=progress)
    assert sorted(tree(tmp_path)) == [f'{number:05d}.png' for number in range(5)]


def no_gpu_memory(*args, **options):
    raise torch.OutOfMemoryError('CUDA out of memory.\nmore')


def no_memory(*args, **options):
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    ('fail', 'message'),
    [
        (no_gpu_memory, r'^out of GPU memory; object_chunk .*\(CUDA out of memory\.\)$'),
        (no_memory, r'^out of memory; object_chunk .*\(.*you tried to allocate 1152921504606846976 bytes.*\)$'),
    ],
)
def test_too_little_memory_names_what_helps(small_network, clip, first_mask, monkeypatch, fail, message):
    monkeypatch.setattr(InferenceCore, 'step', fail)
    with pytest.raises(TooLittleMemoryError, match=message):
        next(propagate(InferenceCore(small_network), Endless(clip, first_mask, end=3)))


def test_other_errors_are_raised_as_they_are(small_network, clip, first_mask, monkeypatch):
    def fail(*args, **options):
        torch.ones(2) @ torch.ones(3)

    monkeypatch.setattr(InferenceCore, 'step', fail)
    with pytest.raises(RuntimeError, match='size') as raised:
        next(propagate(InferenceCore(small_network), Endless(clip, first_mask, end=3)))
    assert not isinstance(raised.value, TooLittleMemoryError)


def test_what_waits_to_be_written_holds_no_image(clip, first_mask, small_network):
    frame = next(propagate(InferenceCore(small_network), Endless(clip, first_mask, end=1)))
    job = Masks(GOLDEN).job(frame)
    assert not any(isinstance(each, np.ndarray) for each in job.args)
    assert [each.numel() for each in job.args if isinstance(each, torch.Tensor)] == [first_mask.numel()]
