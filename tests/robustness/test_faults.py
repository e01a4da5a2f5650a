"""A disk that is full, a folder that cannot be written, threads and processes that fail, signals: what is there is
whole, the status says so, one line says which file and what to do, and the next run goes on."""

import gc
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import zipfile
from contextlib import contextmanager, nullcontext, suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval_davis
import train
from dataset import io
from dataset.davis import davis
from dataset.io import write_mask
from dataset.video import VideoDataset
from inference import InferenceCore, outputs
from inference import run as run_module
from inference.outputs import BackgroundWriter, Masks, Probabilities, write_archive
from inference.video_file import VideoWriter
from model import VARIANTS, STCNConfig, build_network, save_network
from scripts import check_data, conversions, convert, evaluate
from tests.conftest import REPOSITORY, tree
from tests.tiny import TINY, training_flags
from tests.trees import make_davis
from training.report import Report
from training.run import Run
from util import cli
from util.errors import UserError
from util.files import atomic_path, check_writable, locked_folder
from util.stop import Stopped, StopRequest

PAGE = 4096
FULL = r'cannot be written \((?:No space left on device|File too large)\)\. Make room, and run this again\.'
FULL_VIDEO = r'cannot write the video \((?:No space left on device|File too large)\)'
SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130}


pytestmark = pytest.mark.usefixtures('one_thread')


@contextmanager
def signals_as_in_a_terminal():
    """Set the handlers of a terminal: a shell's background job ignores Ctrl-C, and a script that ended leaves its
    handlers. A signal that no script handles must not end the tests."""

    def unnoticed(number, frame):
        raise AssertionError(f'signal {number} ends the process on the spot')

    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, unnoticed)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def mounted(folder: Path, options: str):
    """A file system in memory. Skips the test where this user, or this container, may not mount."""
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'needs the right to mount: {getattr(error, "stderr", error)}')
    try:
        yield folder
    finally:
        subprocess.run(['umount', '-l', folder], check=True)


@pytest.fixture
def disk(tmp_path):
    """A disk of 64 MB."""
    with mounted(tmp_path / 'disk', 'size=64m') as folder:
        yield folder


def fill(folder: Path, *, leave: int) -> Path:
    """A file that takes all of the disk but this many bytes."""
    gc.collect()  # a deleted file takes room while the traceback of a run before keeps it open
    filler = folder / 'filler'
    free = os.statvfs(folder).f_bavail * PAGE
    with open(filler, 'wb') as file:
        os.posix_fallocate(file.fileno(), 0, max(PAGE, free - leave // PAGE * PAGE))
    return filler


@contextmanager
def files_up_to(size: int):
    """Limit the size of files, which simulates a full disk on every system."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def used(folder: Path) -> int:
    """Bytes that the files below take on a disk."""
    return sum(-(-len(content) // PAGE) * PAGE for content in tree(folder).values())


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs a script in this process as a shell does. Returns its exit status and its last line."""

    def run(script, *flags):
        monkeypatch.setattr(sys, 'argv', [script.__name__, *map(str, flags)])
        with signals_as_in_a_terminal(), pytest.raises(SystemExit) as end:
            cli.run_main(script.main)
        status = end.value.code or 0
        return (1, status) if isinstance(status, str) else (status, capfd.readouterr().err)

    return run


# Every kind of file


def write_probabilities(path):
    Probabilities.write(path, torch.rand(3, 60, 60, generator=torch.Generator().manual_seed(0)), [1, 2])


def write_masks_archive(path):
    """Write an archive whose masks are on another disk, so that only the archive lacks room."""
    root, output = path.parent.parent / 'source', path.with_suffix('')
    if not root.exists():
        make_davis(root, 'cat')
    if not output.exists():
        output.symlink_to(root / 'trainval' / 'Annotations' / '480p')
    names = [name for video in davis(root) for name in video.wanted]
    write_archive(path, Masks(output), names)


def write_overlay(path):
    pytest.importorskip('av')
    with VideoWriter(path, 200, 200, time_base=Fraction(1, 25), frame_rate=Fraction(25)) as writer:
        for pts in range(5):
            writer.write(np.random.default_rng(pts).integers(0, 255, (200, 200, 3), np.uint8), pts)


noise = np.random.default_rng(0).integers(0, 255, (200, 200), np.uint8)
content = {'iteration': 2, 'network': {str(i): torch.ones(500) for i in range(40)}}
numbers = {'J&F': 1.0, 'J': dict.fromkeys(('mean', 'recall', 'decay'), 1.0), 'sequences': {}}
WRITERS = {
    'mask.png': lambda path: write_mask(path, noise),
    'frame.npz': write_probabilities,
    'masks.zip': write_masks_archive,
    'network.pth': lambda path: save_network(
        path, build_network(STCNConfig('mobilenet_v2', 'mobilenet_v2', key_dim=8, value_dim=8, decoder_widths=(8, 8)))
    ),
    'checkpoint_00000002.pth': lambda path: Run(path.parent).save(content),
    'nonfinite_00000002.pth': lambda path: Run(path.parent).save_broken(content),
    'config.json': lambda path: Run(path.parent).write_configuration({'flags': 1000 * [1]}),
    'scores.json': lambda path: evaluate.write_json(path, numbers | {'sequences': {i: {} for i in range(1000)}}),
    'scores.csv': lambda path: evaluate.write_csv(path, numbers),
    'frame.jpg': lambda path: conversions.write(path, Image.fromarray(noise)),
    'overlay.mp4': lambda path: write_overlay(path),
    'copy': lambda path: conversions.copy(Path(__file__), path),
}


@pytest.mark.parametrize('name', WRITERS)
@pytest.mark.parametrize('how', ['disk', 'limit'])
def test_no_room_for_a_file(name, how, tmp_path, request):
    torch.manual_seed(0)
    (tmp_path / 'whole').mkdir()
    WRITERS[name](tmp_path / 'whole' / name)
    size = (tmp_path / 'whole' / name).stat().st_size
    message = FULL_VIDEO if name == 'overlay.mp4' else FULL

    if how == 'disk':
        folder = request.getfixturevalue('disk')
        (folder / name).write_bytes(b'of an earlier run')
        room = fill(folder, leave=size // 2)
        with pytest.raises(OSError, match=f'^{re.escape(str(folder / name))}: {message}$'):
            WRITERS[name](folder / name)
        room.unlink()
    else:
        folder = tmp_path / 'limited'
        folder.mkdir()
        (folder / name).write_bytes(b'of an earlier run')
        with files_up_to(size // 2), pytest.raises(OSError, match=f'^{re.escape(str(folder / name))}: {message}$'):
            WRITERS[name](folder / name)
    assert (folder / name).read_bytes() == b'of an earlier run'
    assert not list(folder.rglob('.*'))
    WRITERS[name](folder / name)
    assert (folder / name).stat().st_size == size


def test_other_errors_speak_for_themselves(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: .*/missing'"):
        conversions.copy(tmp_path / 'missing', tmp_path / 'copy')
    with pytest.raises(RuntimeError, match='of the writer'), atomic_path(tmp_path / 'a'):
        raise RuntimeError('of the writer')
    assert list(tmp_path.iterdir()) == []


# Evaluation


@pytest.fixture(scope='module')
def network(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights') / 'tiny.pth'
    save_network(path, build_network(TINY))
    return path


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp('DAVIS')
    make_davis(root, 'cat', 'dog')
    return root


@pytest.fixture
def segment(run, network, videos):
    """eval_davis.py on two videos of four frames."""

    def segment(output, *flags):
        return run(
            eval_davis,
            '--model',
            network,
            '--davis_path',
            videos,
            '--device',
            'cpu',
            '--num_threads',
            1,
            '--size',
            48,
            '--save_probs',
            '--zip',
            '--output',
            output,
            *flags,
        )

    return segment


def test_the_disk_gets_full_while_evaluating(segment, disk, tmp_path):
    """The disk gets full at the settings, at the masks and probabilities, or at the archive."""
    (tmp_path / 'expected').mkdir()
    assert segment(tmp_path / 'expected' / 'out')[0] == 0
    expected = tree(tmp_path / 'expected')
    pages = used(tmp_path / 'expected') // PAGE
    named = []
    for number, leave in enumerate((0, 3, pages - 1)):
        work = disk / str(number)
        work.mkdir()
        filler = fill(disk, leave=leave * PAGE)
        status, message = segment(work / 'out')
        assert status == 1
        [named_file] = re.findall(f'^error: {re.escape(str(work))}/(.+): {FULL}$', message)
        named.append(named_file)
        left = tree(work)
        assert all(expected[name] == value for name, value in left.items())  # no temporary file, no half-written one
        assert named_file not in left
        filler.unlink()
        assert segment(work / 'out')[0] == 0
        assert tree(work) == expected
        subprocess.run(['rm', '-r', work], check=True)
    assert named[0] == 'out/settings.json'
    assert {name.rpartition('.')[2] for name in named[1:-1]} <= {'png', 'npz', 'zip'}
    assert named[-1] == 'out.zip'


@pytest.fixture
def no_network(monkeypatch):
    """Fail if a script loads the network, since it should have refused before."""

    def fail(*args, **options):
        raise AssertionError('the network runs')

    monkeypatch.setattr(run_module, 'Ensemble', fail)


@pytest.mark.usefixtures('no_network')
def test_a_read_only_disk_is_refused_before_the_network_runs(segment, tmp_path):
    refusal = r'cannot be written \(Read-only file system\)\. Choose another place or make this one writable, and'
    with mounted(tmp_path / 'disk', 'ro') as disk:
        status, message = segment(disk / 'out')
        assert status == 1
        assert re.match(f'error: {disk}/out/settings.json: {refusal}', message)
        (tmp_path / 'out').mkdir()
        subprocess.run(['mount', '--bind', disk, tmp_path / 'out'], check=True)  # the archive could be written
        try:
            assert re.match(f'error: {tmp_path}/out/settings.json: {refusal}', segment(tmp_path / 'out')[1])
        finally:
            subprocess.run(['umount', '-l', tmp_path / 'out'], check=True)


@pytest.mark.usefixtures('no_network')
def test_a_file_in_place_of_a_folder_is_refused_before_the_network_runs(segment, tmp_path):
    (tmp_path / 'file').write_bytes(b'mine')
    for output in (tmp_path / 'file', tmp_path / 'file' / 'out'):
        status, message = segment(output)
        assert status == 1
        assert re.match(
            f'error: {output}/settings.json: cannot be written '
            rf'\({tmp_path}/file has to be a folder\)\. Choose another place',
            message,
        )
    (tmp_path / 'out.zip').mkdir()
    assert re.match(f'error: {tmp_path}/out.zip: cannot be written .Is a directory', segment(tmp_path / 'out')[1])
    assert list(tree(tmp_path)) == ['file']


def test_an_error_of_the_writing_threads_ends_the_run_and_names_the_file(segment, tmp_path, monkeypatch):
    """The second frame's mask fails, and no more than one frame after it is computed."""
    computed = []
    step, write = InferenceCore.step, Image.Image.save

    def slow_step(core, *args, **options):
        computed.append(core)
        for future in writers[0].pending:  # otherwise all frames might be computed before one is written
            future.exception()
        return step(core, *args, **options)

    def fail(image, path, **options):
        if path.name == '.00001.png.part':
            path.write_bytes(b'half')
            raise OSError(28, 'No space left on device')
        return write(image, path, **options)

    writers = []
    create = BackgroundWriter.__init__
    monkeypatch.setattr(Probabilities, 'behind', 32)
    monkeypatch.setattr(
        BackgroundWriter,
        '__init__',
        lambda writer, *args, **options: writers.append(writer) or create(writer, *args, **options),
    )
    monkeypatch.setattr(InferenceCore, 'step', slow_step)
    monkeypatch.setattr(Image.Image, 'save', fail)
    status, message = segment(tmp_path / 'out')
    assert status == 1
    assert re.match(f'error: {tmp_path}/out/cat/00001.png: {FULL}', message)
    assert len(computed) <= 3
    assert not (tmp_path / 'out' / 'cat' / '00001.png').exists()
    assert not list((tmp_path / 'out').rglob('.*'))
    assert not (tmp_path / 'out.zip').exists()


def test_an_error_of_the_last_write_comes_out_at_the_end():
    def fail():
        raise OSError('the last one')

    with pytest.raises(OSError, match='the last one'), BackgroundWriter(8) as writer:
        writer.submit(fail)


def test_an_error_of_the_reading_threads_names_the_file(segment, videos, tmp_path, monkeypatch, caplog):
    def fail(path, *args, **options):
        if Path(path).match('dog/00002.jpg'):
            raise OSError(5, 'Input/output error')
        return opened(path, *args, **options)

    opened = Image.open
    monkeypatch.setattr(Image, 'open', fail)
    monkeypatch.setattr(io, '_read_jpeg', lambda path, reduction: None)
    assert segment(tmp_path / 'out')[0] == 1
    broken = videos / 'trainval/JPEGImages/480p/dog/00002.jpg'
    assert re.search(f'dog: {broken}: .*Input/output error', caplog.text)
    assert 'the archive was not written, because some videos failed' in caplog.text
    assert not (tmp_path / 'out.zip').exists()
    assert not (tmp_path / 'out' / 'dog' / '00003.png').exists()
    assert len(list((tmp_path / 'out' / 'cat').iterdir())) == 4


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_ends_an_evaluation_after_the_frame_and_finished_videos_are_kept(
    number, segment, tmp_path, monkeypatch, caplog
):
    """The signal comes in the first frame of the second video, when no mask of the first video is written yet."""
    step, write, leave = InferenceCore.step, outputs.write_mask, BackgroundWriter.__exit__
    frames, leaving = [], threading.Event()

    def signalled_step(core, *args, **options):
        frames.append(core)
        if len(frames) == 5:
            os.kill(os.getpid(), number)
        return step(core, *args, **options)

    def late_write(path, mask):
        leaving.wait(60)
        write(path, mask)

    def noted_leave(writer, *error):
        threading.Timer(0.2, leaving.set).start()
        leave(writer, *error)

    with monkeypatch.context() as patch:
        patch.setattr(InferenceCore, 'step', signalled_step)
        patch.setattr(outputs, 'write_mask', late_write)
        patch.setattr(Probabilities, 'behind', 32)
        patch.setattr(BackgroundWriter, '__exit__', noted_leave)
        assert segment(tmp_path / 'out')[0] == SIGNALS[number]
    assert len(frames) == 5
    assert 'stopping after this frame' in caplog.text
    files = tree(tmp_path)
    masks = [f'out/cat/0000{frame}.png' for frame in range(4)] + ['out/dog/00000.png']
    assert [name for name in files if name.endswith('.png')] == masks
    assert not list(tmp_path.rglob('.*'))
    assert 'out.zip' not in files
    caplog.set_level(logging.INFO)
    assert segment(tmp_path / 'out')[0] == 0
    assert files.items() <= tree(tmp_path).items()
    assert (tmp_path / 'out.zip').exists()


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_before_and_after_the_network_runs(number, segment, tmp_path, monkeypatch):
    """The signal comes while weights are loaded, or while the archive is written. An older archive stays as it is."""

    def signalled(*args, **options):
        os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(torch, 'load', signalled)
        status, message = segment(tmp_path / 'out')
    assert (status, message) == (SIGNALS[number], 'interrupted; what is finished is kept\n')
    assert list(tmp_path.iterdir()) == []

    (tmp_path / 'out.zip').write_bytes(b'of an earlier run')
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, 'writestr', signalled)
        assert segment(tmp_path / 'out')[0] == SIGNALS[number]
        assert (tmp_path / 'out.zip').read_bytes() == b'of an earlier run'
        # --overwrite deletes the masks at once, and the archive of these masks with them.
        assert segment(tmp_path / 'out', '--overwrite')[0] == SIGNALS[number]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out']
    assert not list(tmp_path.rglob('.*'))
    assert segment(tmp_path / 'out')[0] == 0
    assert len(zipfile.ZipFile(tmp_path / 'out.zip').namelist()) == 8


def test_a_signal_counts_even_where_a_library_stumbles_over_it(segment, tmp_path, monkeypatch):
    """A signal may make torch or our reading of checkpoints raise another error, which must not hide the signal."""

    def stumble(*args, **options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise RuntimeError('trying to pop from empty mode stack')

    monkeypatch.setattr(torch, 'load', stumble)
    assert segment(tmp_path / 'out') == (143, 'interrupted; what is finished is kept\n')


def test_the_shell_sees_what_ended_an_evaluation(network, tmp_path):
    """A process of its own, signalled at some moment; no traceback."""
    make_davis(tmp_path / 'DAVIS', 'cat', 'dog', frames=50)
    process = subprocess.Popen(
        [
            sys.executable,
            REPOSITORY / 'tests' / 'tiny.py',
            REPOSITORY / 'eval_davis.py',
            '--model',
            network,
            '--davis_path',
            tmp_path / 'DAVIS',
            '--device',
            'cpu',
            '--num_threads',
            '1',
            '--size',
            '96',
            '--output',
            tmp_path / 'out',
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith('1/2 '):
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == SIGNALS[signal.SIGTERM], errors
    assert errors == 'stopping after this frame; Ctrl-C again stops at once\ninterrupted; what is finished is kept\n'
    assert not list((tmp_path / 'out').rglob('.*'))


@pytest.mark.long
def test_killed_runs_end_as_undisturbed_ones():
    """Segmentations in both directions and trainings, compared bit for bit. Without --quick, more kinds of runs."""
    kills = ['--evaluation', '0', '--segmentation', '1', '--training', '3', '--quick']
    done = subprocess.run(
        [sys.executable, 'tests/kill_runs.py', *kills], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '| segmentation | 1 |' in done.stdout
    assert '| training | 3 |' in done.stdout


def test_a_second_signal_does_not_wait():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(Stopped) as end:
            os.kill(os.getpid(), signal.SIGTERM)
    assert end.value.signal == signal.SIGTERM


# Training


@pytest.fixture
def learn(run, roots, monkeypatch):
    """train.py for six iterations, with a checkpoint after every second one."""
    monkeypatch.setitem(VARIANTS, 'tiny', TINY)

    def learn(folder, *flags):
        monkeypatch.chdir(folder)
        return run(
            train,
            *training_flags(roots),
            '--num_workers',
            0,
            '--stage',
            3,
            '-i',
            6,
            '--save_every',
            2,
            '--id',
            'a',
            *flags,
        )

    return learn


def names(folder):
    return sorted(path.name for path in folder.iterdir() if 'tfevents' not in path.name)


def test_the_disk_gets_full_while_training(learn, disk):
    """The disk gets full at the second checkpoint, and at the final weights."""
    saves = disk / 'saves' / 'a'
    assert learn(disk, '-i', 2)[0] == 0
    size = (saves / 'checkpoint_00000002.pth').stat().st_size
    (saves / 'a.pth').unlink()
    filler = fill(disk, leave=size // 2)
    for left in (
        ['checkpoint_00000002.pth', 'config.json'],
        [*(f'checkpoint_0000000{i}.pth' for i in (2, 4, 6)), 'config.json'],
    ):
        status, message = learn(disk, '--resume')
        named = 'a.pth' if len(left) > 2 else 'checkpoint_00000004.pth'
        assert status == 1
        assert re.fullmatch(f'error: (saves/a/{named}): {FULL}', message)
        assert names(saves) == left
        filler.unlink()
        fill(disk, leave=int(2.1 * size))
    filler.unlink()
    assert learn(disk, '--resume')[0] == 0
    assert names(saves) == ['a.pth', *(f'checkpoint_0000000{i}.pth' for i in (2, 4, 6)), 'config.json']


def test_a_place_that_cannot_be_written_is_refused_before_training(learn, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.Adam, 'step', None)
    (tmp_path / 'saves').mkdir()
    (tmp_path / 'saves' / 'a').write_bytes(b'mine')
    status, message = learn(tmp_path)
    assert status == 1
    assert message.startswith('error: saves/a/config.json: cannot be written (saves/a has to be a folder). Choose')
    with mounted(tmp_path / 'disk', 'ro') as disk:
        status, message = learn(disk)
        assert status == 1
        assert message.startswith('error: saves/a/config.json: cannot be written (Read-only file system). Choose')


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_no_room_for_curves(disk):
    """TensorBoard writes in a thread of its own, whose error comes out later: in a call, or at the end."""
    logits = torch.zeros(1, 2, 2, 64, 64)
    target = torch.zeros(1, 3, 64, 64, dtype=torch.long)
    image = 40 * torch.randn(1, 3, 3, 64, 64)
    message = f'{disk}: events for TensorBoard cannot be written .No space left on device.. Make room, and resume'

    def draw(iterations, error=None):
        with Report(disk, start=0, iterations=9) as report:
            fill(disk, leave=0)
            with suppress(OSError) if error else nullcontext():
                for iteration in range(iterations):
                    report.images(iteration, image, target, logits)
            if error:
                raise error

    for iterations in (1, 8):
        with pytest.raises(OSError, match=message):
            draw(iterations)
        (disk / 'filler').unlink()
        with pytest.raises(FloatingPointError, match='the first error counts'):
            draw(iterations, FloatingPointError('the first error counts'))
        (disk / 'filler').unlink()


def test_a_loader_process_that_dies(learn, tmp_path, monkeypatch):
    """The process is killed as the system does it when memory runs out."""
    main = os.getpid()

    def die(*args, **options):
        assert os.getpid() != main
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(VideoDataset, 'sample', die)
    status, message = learn(tmp_path, '--num_workers', 1)
    assert status == 1
    assert re.fullmatch(
        r'error: a process that loads data has died.*'
        r'\(DataLoader worker \(pid.* \d+\) .*(Killed|exited).*\) \(--num_workers, --resume\)',
        message,
    )


@pytest.mark.parametrize('workers', [0, 1])
def test_files_that_a_loader_cannot_read_are_named_in_one_line(learn, roots, tmp_path, monkeypatch, workers):
    def fail(path, **options):
        raise io.DataError(f'{path}: expected an image, cannot read it')

    monkeypatch.setattr('dataset.video.read_image', fail)
    status, message = learn(tmp_path, '--num_workers', workers)
    assert status == 1
    assert re.fullmatch(
        rf'error: 10 samples in a row could not be read; the last one: {roots["davis_root"].parent}.*'
        r'\.jpg: expected an image, cannot read it',
        message,
    )
    # In a process that lives on after an error, the DataLoader waits five seconds before it ends those that load.
    monkeypatch.setattr('torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL', 0.1)
    gc.collect()


# Other scripts


@pytest.mark.parametrize('flag', ['--json', '--csv'])
def test_scores_that_cannot_be_written_are_refused_before_scoring(run, videos, tmp_path, monkeypatch, flag):
    monkeypatch.setattr(evaluate, 'score_results', None)
    (tmp_path / 'file').touch()
    status, message = run(
        evaluate,
        '--results',
        videos / 'trainval/Annotations/480p',
        '--dataset',
        'davis2017',
        '--root',
        videos,
        '--num_workers',
        1,
        flag,
        tmp_path / 'file' / 'scores',
    )
    assert status == 1
    assert message.startswith(f'error: {tmp_path}/file/scores: cannot be written ({tmp_path}/file has to be a folder)')


def test_a_report_that_cannot_be_written_is_refused_before_checking(run, roots, tmp_path, monkeypatch):
    monkeypatch.setattr(check_data, 'check_all', None)
    (tmp_path / 'file').touch()
    status, message = run(check_data, '--davis_root', roots['davis_root'], '--json', tmp_path / 'file' / 'report.json')
    assert status == 1
    assert message.startswith(f'error: {tmp_path}/file/report.json: cannot be written')


def test_what_can_be_written_stays_as_it_is(tmp_path):
    (tmp_path / 'there').write_bytes(b'mine')
    check_writable(tmp_path / 'there')
    check_writable(tmp_path / 'new' / 'file')
    assert tree(tmp_path) == {'there': b'mine'}


def test_a_folder_that_another_process_locks(tmp_path):
    pytest.importorskip('fcntl')
    folder = tmp_path / 'new' / 'out'
    program = (
        'import sys\n'
        'from util.files import locked_folder\n'
        'with locked_folder(sys.argv[1]):\n'
        '    print("locked", flush=True)\n'
        '    sys.stdin.read()\n'
    )
    command = [sys.executable, '-c', program, folder]
    options = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True, 'cwd': REPOSITORY}
    with subprocess.Popen(command, **options) as other:
        assert other.stdout.readline() == 'locked\n'
        with pytest.raises(UserError, match=f'{folder}: another run is writing to it'), locked_folder(folder):
            pass
        other.kill()
    for _ in range(2):  # neither a process that was killed nor a block that has ended holds the lock
        with locked_folder(folder):
            pass
    assert not list(folder.iterdir())
    for files in ([], ['file']):  # an empty folder is not left where there was none
        with locked_folder(tmp_path / 'other'):
            for name in files:
                (tmp_path / 'other' / name).touch()
        assert [path.name for path in tmp_path.glob('other/*')] == files
        assert (tmp_path / 'other').exists() == bool(files)


def test_converting_goes_on_where_the_disk_was_full(run, roots, disk, tmp_path):
    """Stills of DAVIS are made in this process. Every file that has its final name is whole."""
    flags = ('stills', '--root', roots['davis_root'], '--every', 2, '--num_workers', 1, '--output')
    assert run(convert, *flags, tmp_path / 'out')[0] == 0
    expected = tree(tmp_path / 'out')
    filler = fill(disk, leave=len(expected) // 2 * PAGE)
    status, message = run(convert, *flags, disk / 'out')
    assert status == 1
    assert re.match(f'error: {disk}/out/.*: {FULL}', message)
    left = tree(disk / 'out')
    assert left
    assert left.items() < expected.items()
    filler.unlink()
    assert run(convert, *flags, disk / 'out')[0] == 0
    assert tree(disk / 'out') == expected


def test_settings_are_read_whole(segment, tmp_path):
    """Half a file, which our runs never leave, is not taken for settings."""
    assert segment(tmp_path / 'out')[0] == 0
    settings = tmp_path / 'out' / 'settings.json'
    whole = settings.read_text()
    settings.write_text(whole[: len(whole) // 2])
    status, message = segment(tmp_path / 'out')
    assert status == 1
    assert re.match(f'error: {settings}: no readable JSON .*overwrite them or choose another place', message)
    settings.write_text(whole)
    (tmp_path / 'out' / '.settings.json.part').write_text(whole[:10])  # as a killed run leaves it
    assert segment(tmp_path / 'out')[0] == 0
    assert json.loads(settings.read_text()) == json.loads(whole)
    assert not list((tmp_path / 'out').rglob('.*'))
