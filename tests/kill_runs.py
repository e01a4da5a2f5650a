"""Kills evaluations, segmentations and trainings at random moments, runs them again until they are finished, and
compares their results with those of undisturbed runs.

    python tests/kill_runs.py --evaluation 70 --segmentation 40 --training 40

Most runs are forked from this process, which has imported everything, so that they take about a second. Every sixth
run starts an interpreter of its own, and half of the forked runs write slowly, so that many kills hit a write.
"""

import argparse
import hashlib
import importlib
import itertools
import json
import os
import random
import re
import resource
import runpy
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from dataset.video import read_split
from inference import continuing
from inference.outputs import UNFINISHED
from model import VARIANTS, CheckpointError, build_network, save_network
from model.checkpoint import read_checkpoint
from tests.tiny import SAVE_OFTEN, training_flags
from tests.tiny import TINY as TINY_CONFIG
from tests.trees import make_davis, make_roots, write_video

REPOSITORY = Path(__file__).parents[1]
TINY = [sys.executable, str(REPOSITORY / 'tests' / 'tiny.py')]
ENVIRONMENT = os.environ | {'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1', 'STCN_TEST_SAVE_OFTEN': '1'}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LIMIT = 300  # seconds that a run may take
SLOW = 0.1  # seconds for which a file is half written; for a checkpoint, five times as many
Kind = tuple[bool, bool]  # of a run: (whether it starts an interpreter of its own, whether it writes slowly)
SHARES: dict[Kind, float] = {(False, False): 5 / 12, (False, True): 5 / 12, (True, False): 1 / 6}
QUICK: dict[Kind, float] = {(False, False): 1}

# Exit statuses of a run that was sent a signal: if the signal itself ended it, and if the script handled the signal.
STATUSES = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGTERM: (-signal.SIGTERM, 128 + signal.SIGTERM),
    signal.SIGINT: (-signal.SIGINT, 128 + signal.SIGINT),
}


@dataclass
class Tally:
    """What was done to the runs of one kind, and what was found."""

    kind: str
    signals: Counter = field(default_factory=Counter)
    interpreters: int = 0  # kills of a run with an interpreter of its own
    half_written: int = 0  # kills that left a temporary file
    finished: int = 0  # runs that were killed until they were finished, and compared
    slowest_stop: float = 0.0  # seconds from SIGTERM or SIGINT to the end
    differences: list[str] = field(default_factory=list)

    def row(self) -> str:
        by_signal = ' | '.join(str(self.signals[number]) for number in SIGNALS)
        return (
            f'| {self.kind} | {self.signals.total()} | {by_signal} | {self.interpreters} | {self.half_written} '
            f'| {self.slowest_stop:.1f} s | {self.finished} | {len(self.differences)} |'
        )


HEADER = (
    '| runs | kills | SIGKILL | SIGTERM | SIGINT | own interpreter | half-written file left | slowest stop '
    '| finished and compared | differences |\n|---|' + 9 * '---:|'
)


# A run


def start(script: str, flags: list[str], folder: Path, *, fresh: bool = False, slow: bool = False) -> int:
    """Start a process that runs a script in ``folder``, and return its id. Its output goes to ``folder/log``."""
    # Otherwise a signal could reach the child while it still runs this program.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    process = os.fork()
    if process == 0:
        run_script(script, flags, folder, fresh=fresh, slow=slow)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return process


def run_script(script: str, flags: list[str], folder: Path, *, fresh: bool, slow: bool) -> None:
    """Run the script in the child process. Never returns."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a shell ignore it
        log = os.open(folder / 'log', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.chdir(folder)
        if fresh:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            os.execve(sys.executable, [*TINY, script, *flags], ENVIRONMENT)
        continuing.SAVE_SECONDS, continuing.SHARE = SAVE_OFTEN
        if slow:
            write_slowly()
        sys.argv = [script, *flags]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        runpy.run_path(script, run_name='__main__')
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        else:
            status = end.code or 0
    except KeyboardInterrupt:  # came before the script handles signals
        status = -signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if status < 0:
            signal.signal(-status, signal.SIG_DFL)
            os.kill(os.getpid(), -status)
        os._exit(status)


def write_slowly() -> None:
    """Leave each mask, file of probabilities and checkpoint half written for a moment, and wait after each mask of
    an archive."""
    import zipfile

    png, npz, member, tensors = Image.Image.save, np.savez_compressed, zipfile.ZipFile.writestr, torch.save

    def write(path: str | Path, content: bytes, seconds: float) -> None:
        with open(path, 'wb', buffering=0) as file:
            file.write(content[: len(content) // 2])
            time.sleep(seconds)
            file.write(content[len(content) // 2 :])

    def slow_png(image: Image.Image, target: Path | BytesIO, **options: object) -> None:
        png(image, buffer := BytesIO() if isinstance(target, Path) else target, **options)
        if isinstance(target, Path):  # TensorBoard writes its images to memory
            write(target, buffer.getvalue(), SLOW)

    def slow_npz(file: BytesIO, **arrays: np.ndarray) -> None:
        npz(buffer := BytesIO(), **arrays)
        write(file.name, buffer.getvalue(), SLOW)

    def slow_member(archive: zipfile.ZipFile, *args: object) -> None:
        member(archive, *args)
        archive.fp.flush()
        time.sleep(SLOW)

    def slow_tensors(content: dict, path: Path) -> None:
        tensors(content, buffer := BytesIO())
        write(path, buffer.getvalue(), 5 * SLOW)

    Image.Image.save, np.savez_compressed, zipfile.ZipFile.writestr, torch.save = (
        slow_png,
        slow_npz,
        slow_member,
        slow_tensors,
    )


def ended(process: int, seconds: float) -> bool:
    """Whether the process ends within this time."""
    descriptor = os.pidfd_open(process)
    try:
        return bool(select.select([descriptor], [], [], max(0, seconds))[0])
    finally:
        os.close(descriptor)


def status_of(process: int, folder: Path) -> int:
    """Wait for the end of a process and return its exit status. Kills it after ``LIMIT`` seconds: ``TimeoutError``."""
    if not ended(process, LIMIT):
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        raise TimeoutError(f'{folder}: has not ended after {LIMIT} s\n{(folder / "log").read_text()}')
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def undisturbed(script: str, flags: list[str], folder: Path, **how: bool) -> float:
    """Run a script to its end, and return the seconds that it took."""
    begin = time.monotonic()
    if status := status_of(start(script, flags, folder, **how), folder):
        raise RuntimeError(f'status {status}\n{(folder / "log").read_text()}')
    return time.monotonic() - begin


def kill_until_finished(
    tally: Tally,
    kills: int,
    script: str,
    flags: list[str],
    folder: Path,
    *,
    lengths: dict[tuple[bool, bool], float],
    rng: random.Random,
    shares: dict[Kind, float],
    look: Callable[[], set[str]],
) -> None:
    """Start a run and kill it at a random moment, again and again until it finishes.

    ``lengths[fresh, slow]`` are the seconds that an undisturbed run takes; a run that finishes at once updates them.
    ``look`` checks the files that each attempt leaves and returns the names of the temporary ones. Once the tally has
    ``kills`` kills, attempts are left alone.
    """
    before: set[str] = set()
    for attempt in itertools.count():
        [(fresh, slow)] = rng.choices(list(shares), shares.values())
        [number] = rng.choices(SIGNALS, (2, 1, 1))
        moment = rng.uniform(0, lengths[fresh, slow])
        begin = time.monotonic()
        process = start(script, flags, folder, fresh=fresh, slow=slow)
        kill = tally.signals.total() < kills and not ended(process, moment)
        if kill:
            sent = time.monotonic()
            # Ctrl-C goes to the group of the terminal, the others to the process.
            (os.killpg if number == signal.SIGINT else os.kill)(process, number)
        status = status_of(process, folder)
        log = (folder / 'log').read_text()
        # The last kill came when the run had written everything.
        if status == 1 and 'has results already' in log:
            break
        if status == 0:
            if attempt == 0:
                lengths[fresh, slow] = time.monotonic() - begin
            break
        # Where Ctrl-C interrupts an import, Python may end with status 1.
        stumbled = number == signal.SIGINT and fresh and status == 1 and 'KeyboardInterrupt' in log
        if not kill or not (status in STATUSES[number] or stumbled):
            raise RuntimeError(f'{folder}: ended with {status} after {number if kill else "nothing"}\n{log}')
        left = look()
        tally.signals[number] += 1
        tally.interpreters += fresh
        tally.half_written += bool(left - before)
        if number != signal.SIGKILL:
            tally.slowest_stop = max(tally.slowest_stop, time.monotonic() - sent)
        if status > 0 and not stumbled:  # the script handled the signal
            if 'Traceback' in log:
                tally.differences.append(f'{folder.name}: a traceback after {number.name}:\n{log}')
            if left - before:
                tally.differences.append(f'{folder.name}: {number.name} left {left - before}')
        before = left
    if left := look():
        tally.differences.append(f'{folder.name}: finished, and left {left}')
    tally.finished += 1


# Evaluation and segmentation


def kill_evaluation(folder: Path, *, kills: int, rng: random.Random, shares: dict[Kind, float] = SHARES) -> Tally:
    """Kill evaluations of three videos of five frames, which write probabilities and an archive."""
    make_davis(folder / 'DAVIS', 'cat', 'dog', 'goat', frames=5)
    script = str(REPOSITORY / 'eval_davis.py')
    flags = [
        *tiny_network(folder),
        '--davis_path',
        str(folder / 'DAVIS'),
        '--mem_every',
        '2',
        '--save_probs',
        '--zip',
    ]
    return kill_masks(Tally('evaluation'), script, flags, folder, kills=kills, rng=rng, shares=shares)


def kill_segmentation(folder: Path, *, kills: int, rng: random.Random, shares: dict[Kind, float] = SHARES) -> Tally:
    """Kill segmentations of 24 frames in both directions from two masks, with a bounded memory and cut-outs."""
    write_video(folder / 'frames', folder / 'masks', 'clip', frames=24, labels=(1, 2))
    script = str(REPOSITORY / 'scripts' / 'segment_video.py')
    masks = [f'{frame}={folder}/masks/clip/{frame:05d}.png' for frame in (3, 17)]
    flags = [
        *tiny_network(folder),
        '--input',
        str(folder / 'frames' / 'clip'),
        '--mask',
        *masks,
        '--direction',
        'both',
        '--mem_every',
        '2',
        '--max_memory_frames',
        '4',
        '--cutouts',
    ]
    return kill_masks(Tally('segmentation'), script, flags, folder, kills=kills, rng=rng, shares=shares)


def tiny_network(folder: Path) -> list[str]:
    """Write a small network to the folder, and return the flags that use it."""
    torch.manual_seed(0)
    save_network(folder / 'tiny.pth', build_network(TINY_CONFIG))
    network = ['--model', str(folder / 'tiny.pth'), '--device', 'cpu', '--num_threads', '1', '--size', '48']
    return [*network, '--output', 'out']


def kill_masks(
    tally: Tally,
    script: str,
    flags: list[str],
    folder: Path,
    *,
    kills: int,
    rng: random.Random,
    shares: dict[Kind, float],
) -> Tally:
    """Kill runs that write masks. What they leave under a final name has to be whole, except an overlay's video."""
    lengths, expected = {}, None
    for fresh, slow in shares:
        run = folder / f'undisturbed_{fresh:d}{slow:d}'
        run.mkdir()
        lengths[fresh, slow] = undisturbed(script, flags, run, fresh=fresh, slow=slow)
        found = files(run)
        expected = expected or found
        if found != expected:
            tally.differences.append(f'{run.name}: differs from another undisturbed run')

    while tally.signals.total() < kills:
        run = folder / f'killed_{tally.finished}'
        run.mkdir()

        def look(run: Path = run) -> set[str]:
            found = files(run)
            parts = {name for name in found if re.search(r'(^|/)\.[^/]+\.part$', name)}
            tally.differences.extend(
                f'{run.name}: {name} differs'
                for name, content in found.items()
                if not (name in parts or re.search(rf'/{UNFINISHED}/|\.mp4$', name) or content == expected.get(name))
            )
            if len(parts) > 4:
                tally.differences.append(f'{run.name}: {len(parts)} temporary files: {sorted(parts)}')
            return parts

        kill_until_finished(tally, kills, script, flags, run, lengths=lengths, rng=rng, shares=shares, look=look)
        found = files(run)
        if found != expected:
            names = [name for name in {*expected, *found} if expected.get(name) != found.get(name)]
            tally.differences.append(f'{run.name}: finished, and differs in {sorted(names)}')
    return tally


def files(folder: Path) -> dict[str, bytes]:
    """The content of each file but the log. A video is represented by the times of its frames.

    x264 may encode the same video differently on a busy machine.
    """
    found = {}
    for path in folder.rglob('*'):
        if path.suffix == '.mp4':
            with av.open(str(path)) as video:  # not decoded: the threads of that would not live in a forked process
                found[str(path.relative_to(folder))] = str([packet.pts for packet in video.demux(video=0)]).encode()
        elif path.is_file() and path.name != 'log':
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


# Training


def kill_training(
    folder: Path,
    *,
    kills: int,
    rng: random.Random,
    shares: dict[Kind, float] = SHARES,
    iterations: int = 12,
) -> Tally:
    """Kill trainings of stage 3 with two workers, which save every second iteration and evaluate the averaged weights
    every third. An iteration takes two of six samples, so epochs end often; max-skip changes five times."""
    script = str(REPOSITORY / 'train.py')
    command = [
        *training_flags(make_roots(folder / 'roots')),
        '--stage',
        '3',
        '-i',
        str(iterations),
        '--num_workers',
        '2',
        '--save_every',
        '2',
        '--log_every',
        '1',
        '--images_every',
        '3',
        '--lr',
        '1e-3',
        '--average',
        '0.5',
        '--evaluate_every',
        '3',
        '--hold_aside',
        read_split('youtube_vos_train')[0],
        '--id',
        'run',
        '--resume',
    ]
    tally = Tally('training')
    states: dict[str, str] = {}  # name of a file, for the best network with its iteration -> digest

    def look(run: Path) -> set[str]:
        """Check that all checkpoints and networks can be read and equal those of other runs at the same iteration."""
        saves = run / 'saves' / 'run'
        parts = {path.name for path in saves.glob('.*')}
        paths = {path for path in saves.glob('[!.]*') if 'tfevents' not in path.name}
        for path in paths:
            try:
                if path.name == 'config.json':
                    json.loads(path.read_text())
                elif re.fullmatch(r'(checkpoint_\d+|best|run)\.pth', path.name):
                    content = read_checkpoint(path)
                    name = path.name
                    if name == 'best.pth':
                        name += f' of iteration {content["evaluation"]["iteration"]}'
                    if states.setdefault(name, digest(content)) != digest(content):
                        tally.differences.append(f'{run.name}: {path.name} differs')
                else:
                    tally.differences.append(f'{run.name}: found {path.name}')
            except (ValueError, CheckpointError) as error:
                tally.differences.append(f'{run.name}: {path.name} cannot be read: {error}')
        if len(parts) > 3:
            tally.differences.append(f'{run.name}: {len(parts)} temporary files: {sorted(parts)}')
        return parts

    lengths = {}
    for fresh, slow in shares:
        run = folder / f'undisturbed_{fresh:d}{slow:d}'
        run.mkdir()
        lengths[fresh, slow] = undisturbed(script, command, run, fresh=fresh, slow=slow)
        look(run)
        best = digest(read_checkpoint(run / 'saves' / 'run' / 'best.pth'))
    while tally.signals.total() < kills:
        run = folder / f'killed_{tally.finished}'
        run.mkdir()
        kill_until_finished(
            tally,
            kills,
            script,
            command,
            run,
            lengths=lengths,
            rng=rng,
            shares=shares,
            look=lambda run=run: look(run),
        )
        found = sorted(re.sub(r'.*tfevents.*', 'events', path.name) for path in (run / 'saves' / 'run').iterdir())
        kept = saved_last(found)
        expected = {
            'config.json',
            'events',
            'run.pth',
            'best.pth',
            *(f'checkpoint_{number:08d}.pth' for number in kept),
        }
        if set(found) != expected or iterations not in kept:
            tally.differences.append(f'{run.name}: finished with {found}')
        elif digest(read_checkpoint(run / 'saves' / 'run' / 'best.pth')) != best:
            tally.differences.append(f'{run.name}: another network is the best')
    return tally


def saved_last(names: list[str]) -> list[int]:
    """The iterations of the checkpoints that are kept, at most three."""
    found = [int(match[1]) for name in names if (match := re.fullmatch(r'checkpoint_(\d+)\.pth', name))]
    return found[-3:]


def digest(content: object) -> str:
    """A hash of all tensors and numbers, bit for bit."""
    state = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            state.update(value.numpy().tobytes())
        elif isinstance(value, dict):
            for name, each in value.items():
                state.update(str(name).encode())
                add(each)
        elif isinstance(value, list | tuple):
            for each in value:
                add(each)
        else:
            state.update(repr(value).encode())

    add(content)
    return state.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--evaluation', type=int, default=70, help='how many kills of evaluations; default: %(default)s'
    )
    parser.add_argument(
        '--segmentation', type=int, default=40, help='how many kills of segmentations; default: %(default)s'
    )
    parser.add_argument('--training', type=int, default=40, help='how many kills of trainings; default: %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='seed of signals and moments; default: %(default)s')
    parser.add_argument('--quick', action='store_true', help='only forked runs, at full speed')
    args = parser.parse_args()
    # The forked runs need these modules, so they are imported once, here. Threads would not survive a fork.
    torch.set_num_threads(1)
    names = ('torch.utils.tensorboard', 'dataset.davis', 'dataset.training', 'inference.run', 'training.loop')
    for name in (*names, 'scripts.segment_video', 'inference.directions', 'av'):
        importlib.import_module(name)
    VARIANTS['tiny'] = TINY_CONFIG

    begin, rng, tallies = time.monotonic(), random.Random(args.seed), []
    shares = QUICK if args.quick else SHARES
    for kill, kills in (
        (kill_evaluation, args.evaluation),
        (kill_segmentation, args.segmentation),
        (kill_training, args.training),
    ):
        if kills:
            with tempfile.TemporaryDirectory() as folder:
                tallies.append(kill(Path(folder), kills=kills, rng=rng, shares=shares))
                print(tallies[-1].kind, 'done', file=sys.stderr, flush=True)
    print(HEADER)
    for tally in tallies:
        print(tally.row())
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(f'{time.monotonic() - begin:.0f} s, {sum(each.ru_utime + each.ru_stime for each in used):.0f} s of CPU time')
    for tally in tallies:
        print(*tally.differences, sep='\n')
    return 1 if any(tally.differences for tally in tallies) else 0


if __name__ == '__main__':
    sys.exit(main())
