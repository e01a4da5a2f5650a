"""A long video takes no more memory than a short one, too little memory ends only the video that does not fit, and
a run that is repeated gives the same result."""

import logging
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import eval_davis
from dataset.davis import davis
from inference.clip import Clip
from inference.core import InferenceCore
from inference.outputs import BackgroundWriter
from inference.run import run_dataset
from inference.session import Session
from inference.sources import DatasetSource
from inference.video_file import VideoReader
from model.checkpoint import read_checkpoint
from scripts import segment_video, web_tabs
from scripts.web_paint import layer_of
from tests import forks, long_run
from tests.conftest import FRAMES, GOLDEN, tree
from tests.web_server import adaptation, needs_gradio
from training import loop
from util import cli

pytestmark = pytest.mark.usefixtures('one_thread')

CUDA = 'CUDA out of memory. Tried to allocate 9.00 GiB.\nGPU 0 has a total capacity of 8.00 GiB.'
THREE = ('--stage', 3, '-i', 3)  # iterations


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='needs /proc')
def test_a_long_video_adds_nothing_up():
    """A short form of ``python tests/long_run.py``, which also looks at the memory of the process and at speed."""
    taken = long_run.samples(frames=201, warm_up=60, size=32, max_memory_frames=8, events=4, count_every=20)
    found = {
        name: (before, after, limit) for name, before, after, limit in long_run.compare(taken, warm_up=60, window=60)
    }
    for name in ('files', 'threads', 'tensors', 'memory_frames', 'memory_bytes'):
        before, after, limit = found[name]
        assert after <= limit, f'{name}: {before} became {after}'
    assert found['memory_frames'][1] == 8


# Too little memory


@contextmanager
def too_little_memory(monkeypatch, *, frame: int, cores: range = range(1000)):
    """Make the GPU's memory end at a frame in some cores; ``cores`` counts them in the order of their first frame."""
    step, made = InferenceCore.step, []

    def fail(self, *args, **options):
        if self not in made:
            made.append(self)
        if made.index(self) in cores and self.schedule.time == frame - 1:
            raise torch.OutOfMemoryError(CUDA)
        return step(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(InferenceCore, 'step', fail)
        yield


def test_finished_videos_are_kept_and_others_go_on(davis_root, small_network, tmp_path, monkeypatch, caplog):
    arguments = ([small_network], davis(davis_root), tmp_path / 'out')
    with too_little_memory(monkeypatch, frame=3, cores=range(1, 2)):
        summary = run_dataset(*arguments)
    [(name, cause)] = summary.failures.items()
    assert (name, summary.videos) == ('goat', 1)  # the longer one, dog, came first
    for option in ('object_chunk', 'max_memory_frames', 'amp', 'size'):
        assert option in cause
    assert len(cause.splitlines()) == 1
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [f'goat: {cause}']
    finished = tree(tmp_path / 'out' / 'dog')
    assert len(finished) == 7
    again = run_dataset(*arguments)
    assert (again.skipped, again.videos, again.failures) == (1, 1, {})
    assert tree(tmp_path / 'out' / 'dog') == finished

    (tmp_path / 'out' / 'dog' / '00004.png').unlink()
    (tmp_path / 'out' / 'goat' / '00004.png').unlink()
    with too_little_memory(monkeypatch, frame=3, cores=range(1)):
        summary = run_dataset(*arguments)
    assert (list(summary.failures), summary.videos) == (['dog'], 1)  # what comes after it is segmented


def test_a_video_ends_where_memory_does(small_checkpoint, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        sys,
        'argv',
        [
            'segment_video.py',
            '--input',
            str(GOLDEN / 'clip'),
            '--mask',
            str(GOLDEN / 'first_mask.png'),
            '--strip',
            '2',
            '--output',
            str(tmp_path / 'out'),
            '--model',
            str(small_checkpoint),
            '--size',
            '0',
            '--device',
            'cpu',
            '--num_threads',
            '1',
        ],
    )
    with too_little_memory(monkeypatch, frame=7):
        assert segment_video.main() == 1
    [message] = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert message.startswith('error at frame 7: out of GPU memory')
    for option in ('object_chunk', 'max_memory_frames', 'amp', 'size'):
        assert option in message
    assert sorted(tree(tmp_path / 'out' / 'masks')) == [f'{frame:05d}.png' for frame in range(7)]
    assert (tmp_path / 'out' / 'strip.png').exists()
    if (tmp_path / 'out' / 'overlay.mp4').exists():  # PyAV is optional
        assert len(list(VideoReader(tmp_path / 'out' / 'overlay.mp4'))) == 7


@needs_gradio
def test_a_page_says_that_memory_is_out_and_goes_on(small_network, first_mask, tmp_path, monkeypatch):
    import gradio

    from scripts.web_page import build

    tabs = web_tabs.Tabs(small_network, tmp_path, max_seconds=9, max_bytes=10**7, adapting=adaptation(small_network))
    tab = tabs.tabs['key'] = web_tabs.Tab(Session(small_network, Clip.of_images(FRAMES), tmp_path / 'clip'), 'clip')
    tab.session.paint(0, first_mask.numpy())
    drawn = {'background': tab.session.read_image(0), 'layers': [layer_of(first_mask.numpy())]}
    told = []
    monkeypatch.setattr(gradio, 'Warning', told.append)
    [propagate] = [event.fn for event in build(tabs).fns.values() if event.name == 'forward']
    request = type('Request', (), {'session_hash': 'key'})
    with too_little_memory(monkeypatch, frame=7):
        list(propagate(drawn, False, 1, request))
    assert len(told) == 1
    assert told[0].startswith('out of GPU memory; object_chunk helps with many objects')
    assert 'The masks up to here are kept' in told[0]
    assert tab.session.masked() == list(range(7))
    list(propagate(drawn, False, 1, request))  # the clip can be propagated again
    assert tab.session.masked() == list(range(12))
    assert len(told) == 1


def test_training_says_what_takes_less_memory(learn, monkeypatch):
    loss, iterations = loop.clip_loss, []

    def fail(*args, **options):
        iterations.append(1)
        if len(iterations) == 3:
            raise torch.OutOfMemoryError(CUDA)
        return loss(*args, **options)

    monkeypatch.setattr(loop, 'clip_loss', fail)
    monkeypatch.setattr(cli, 'stop_on_sigterm', lambda: None)
    with pytest.raises(SystemExit) as end:
        cli.run_main(lambda: learn(*THREE, '--id', 'a', '--save_every', 1))
    message = end.value.code
    assert message.startswith('error: out of GPU memory')
    assert len(message.splitlines()) == 1
    for flag in ('--accumulation', '--batch_size', '--crop_size', '--resume'):
        assert flag in message
    assert read_checkpoint('saves/a/checkpoint_00000002.pth')['iteration'] == 2
    assert learn('--id', 'a', '--resume') == 0


def test_other_scripts_say_it_without_a_traceback(monkeypatch):
    def fail():
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(cli, 'stop_on_sigterm', lambda: None)
    with pytest.raises(SystemExit, match='error: CUDA out of memory'):
        cli.run_main(fail)


# The same again


def test_evaluating_twice_gives_the_same_bytes(davis_root, small_checkpoint, tmp_path, monkeypatch):
    """Masks and probabilities are the same with other numbers of reading and writing threads, and in a new process."""

    def words(output, *flags):
        return [
            'eval_davis.py',
            '--model',
            small_checkpoint,
            '--davis_path',
            davis_root,
            '--device',
            'cpu',
            '--num_threads',
            1,
            '--save_probs',
            '--output',
            tmp_path / output,
            *flags,
        ]

    def evaluate(output, *flags):
        monkeypatch.setattr(sys, 'argv', list(map(str, words(output, *flags))))
        assert eval_davis.main() == 0
        return tree(tmp_path / output)

    expected = evaluate('first')
    assert sum(name.endswith('.png') for name in expected) == 12
    assert sum(name.endswith('.npz') for name in expected) == 12
    monkeypatch.setattr(DatasetSource, 'readers', 1)
    monkeypatch.setattr(BackgroundWriter.__init__, '__kwdefaults__', {'threads': 4})
    assert evaluate('other threads') == expected
    process = forks.start(words('fresh'), tmp_path / 'log')
    process.join()
    assert process.exitcode == 0, (tmp_path / 'log').read_text()
    assert tree(tmp_path / 'fresh') == expected


def test_training_twice_gives_the_same_bits(learn):
    """The number of processes that load data makes no difference."""
    for name, flags in (('a', ()), ('b', ()), ('c', ('--num_workers', 2)), ('other', ('--seed', 1))):
        assert learn(*THREE, '--id', name, *flags) == 0
    [a, b, c, other] = (read_checkpoint(f'saves/{name}/checkpoint_00000003.pth') for name in ('a', 'b', 'c', 'other'))
    for found in (b, c):
        assert all(torch.equal(found['network'][name], value) for name, value in a['network'].items())
        for index, moments in a['optimizer']['state'].items():
            assert all(torch.equal(found['optimizer']['state'][index][name], value) for name, value in moments.items())
    assert not all(torch.equal(other['network'][name], value) for name, value in a['network'].items())
