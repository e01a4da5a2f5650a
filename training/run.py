"""The folder of a run: configuration, checkpoints, final weights."""

import dataclasses
import json
import logging
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dataset.augment import init_worker
from dataset.io import DataError
from inference.stream import TooLittleMemoryError
from model import CheckpointError, Network, save_network
from model.checkpoint import read_checkpoint
from training.stages import Stage
from util.distributed import launch_id, rank, restarted, world_size
from util.errors import UserError, cause_of
from util.files import atomic_path

log = logging.getLogger(__name__)

KEPT = 3  # checkpoints
CHECKPOINT = r'(checkpoint|kept)_\d+\.pth'
OUT_OF_MEMORY = (
    'out of GPU memory; accumulation computes the batch in parts, with the same result; a smaller batch or crop size '
    'takes less, too. A run that is resumed continues from the last checkpoint'
)


class Run:
    """``saves/<id>``: ``config.json``, checkpoints, ``best.pth``, in the end ``<id>.pth``.

    A checkpoint is ``checkpoint_<iteration>.pth``, which newer ones replace, or ``kept_<iteration>.pth``, which stays.

    Without a folder nothing is written and nothing is found: that is ``--id NULL``.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder

    @classmethod
    def named(cls, name: str) -> 'Run':
        """The run of an ``--id``. Of several processes, only the first one writes."""
        return cls(Path('saves') / name if name != 'NULL' and rank() == 0 else None)

    @property
    def weights(self) -> Path | None:
        """Where the final weights go."""
        return None if self.folder is None else self.folder / f'{self.folder.name}.pth'

    def configuration(self) -> dict | None:
        """The ``config.json`` of the last start, or ``None``. Raises ``CheckpointError`` if it cannot be read."""
        if self.folder is None or not (self.folder / 'config.json').exists():
            return None
        try:
            return json.loads((self.folder / 'config.json').read_text())
        except ValueError as error:
            raise CheckpointError(f'{self.folder}/config.json: no readable JSON ({error}); remove it') from error

    def write_configuration(self, configuration: dict) -> None:
        if self.folder is not None:
            with atomic_path(self.folder / 'config.json') as temporary:
                temporary.write_text(json.dumps(configuration, indent=2) + '\n')

    def continues(self, *, resume: bool) -> bool:
        """Whether the run continues: with ``resume``, or if torchrun has restarted its processes after a failure."""
        saved = self.configuration()
        same_launch = saved is not None and saved.get('launch') is not None and saved['launch'] == launch_id()
        return resume or restarted() or same_launch

    def start(self, *, resume: bool, file: str | Path | None = None) -> tuple[dict, Path] | None:
        """The checkpoint to start from, and its path: the newest one of a run that continues; else ``file``, if given.

        Raises:
            CheckpointError: the folder holds results that would be replaced, or the file is unusable.
        """
        if self.continues(resume=resume):
            if newest := self.newest():
                return newest
            if self.weights is not None and self.weights.exists():
                raise CheckpointError(
                    f'{self.weights}: is finished, and no checkpoint is left to continue from; begin anew under '
                    'another id',
                    options=['id'],
                )
        elif self.checkpoints() or self._has_results():
            raise CheckpointError(
                f'{self.folder}: holds a run already; resume it, or begin anew under another id',
                options=['resume', 'id'],
            )
        return (read_checkpoint(file), Path(file)) if file else None

    def _has_results(self) -> bool:
        """Whether there are weights that hours of training may have made, with or without checkpoints."""
        best = self.best()
        return (self.weights is not None and self.weights.exists()) or (best is not None and best['iteration'] > 0)

    def checkpoints(self) -> list[Path]:
        """The checkpoints by iteration, the newest first. A checkpoint gets its name when it is complete."""
        if self.folder is None or not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if re.fullmatch(CHECKPOINT, path.name)]
        return sorted(found, key=lambda path: (_iteration(path), path.name), reverse=True)

    def newest(self) -> tuple[dict, Path] | None:
        """The newest checkpoint that can be read. Damaged ones are passed over."""
        for path in self.checkpoints():
            try:
                return read_checkpoint(path), path
            except CheckpointError as error:
                log.warning('%s; taking the one before', error)
        return None

    def save(self, content: dict, *, for_good: bool = False) -> None:
        """Write a checkpoint. Once it is complete, the oldest ones that are not kept for good are deleted.

        The name says whether a checkpoint is kept for good, so that a later start with other flags does not delete it.
        """
        if self.folder is None:
            return
        name = 'kept' if for_good else 'checkpoint'
        with atomic_path(self.folder / f'{name}_{content["iteration"]:08d}.pth') as temporary:
            torch.save(content, temporary)
        # A checkpoint of a later iteration is a damaged one, which this run passed over.
        passing = [
            path
            for path in self.checkpoints()
            if path.name.startswith('checkpoint_') and _iteration(path) <= content['iteration']
        ]
        for old in passing[KEPT:]:
            old.unlink()
        for part in self.folder.glob('.*_*.pth.part'):  # of a killed process
            part.unlink()

    def save_broken(self, content: dict) -> str:
        """Write a state for the user to look into, which no run resumes; return its path."""
        if self.folder is None:
            return 'not saved, since this run keeps nothing'
        path = self.folder / f'nonfinite_{content["iteration"]:08d}.pth'
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
        return str(path)

    def keep_best(self, network: Network, evaluation: dict) -> None:
        """Write the best network so far to ``best.pth``, with its evaluation under ``evaluation``.

        The evaluation scripts load it like any other network. The evaluation has the ``iteration``, the ``size`` at
        which the network worked, ``J``, ``F`` and ``J&F`` in [0, 1] over all objects, and the same for each of the
        ``videos``.
        """
        if self.folder is not None:
            save_network(self.folder / 'best.pth', network, evaluation=evaluation)

    def best(self) -> dict | None:
        """The evaluation of the best network so far, if there is one that can be read."""
        if self.folder is None or not (self.folder / 'best.pth').exists():
            return None
        try:
            found = read_checkpoint(self.folder / 'best.pth')['evaluation']
            return {name: found[name] for name in ('iteration', 'size', 'J', 'F', 'J&F', 'videos')}
        except (CheckpointError, KeyError, TypeError) as error:
            log.warning('%s/best.pth: holds no evaluation (%s); the next one replaces it', self.folder, error)
            return None

    def finish(self, network: Network) -> None:
        """Export the weights as the evaluation scripts load them."""
        if self.weights is not None:
            save_network(self.weights, network)
            log.info('weights: %s', self.weights)


def _iteration(checkpoint: Path) -> int:
    return int(checkpoint.stem.rpartition('_')[2])


def start_worker(worker_id: int) -> None:
    """``worker_init_fn`` of the DataLoader, which puts each worker into a process group of its own.

    Ctrl-C and torchrun's SIGTERM then reach the main process alone, which saves and ends its workers.
    """
    init_worker(worker_id)
    os.setpgid(0, 0)


class LoadingProcessError(UserError, RuntimeError):
    """A process that loads data has died."""


@contextmanager
def loading_errors() -> Iterator[None]:
    """In its block, errors of the DataLoader's processes become one line: what they raised, or that one has died."""
    try:
        yield
    except (DataError, OSError, RuntimeError) as error:
        text = str(error)
        if text.startswith('Caught '):  # the process's traceback follows, which ends with the message
            raise type(error)(text.rpartition(f'{type(error).__name__}: ')[2].rstrip()) from error
        if text.startswith('DataLoader worker'):
            raise LoadingProcessError(
                'a process that loads data has died, perhaps because memory or shared memory ran out. A container has '
                '64 MB of shared memory unless it is started with --shm-size=8g or --ipc=host. Resume the run with '
                f'fewer such processes, which need less ({text})',
                options=['num_workers', 'resume'],
            ) from error
        raise


@contextmanager
def memory_errors() -> Iterator[None]:
    """In its block, too little GPU memory becomes an error of one line that says what takes less."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TooLittleMemoryError(
            f'{OUT_OF_MEMORY} ({cause_of(error)})', options=['accumulation', 'batch_size', 'crop_size', 'resume']
        ) from error


def configuration(flags: dict, stage: Stage, network: Network) -> dict:
    """The content of ``config.json``: all that the result depends on, and what is needed to resume the run."""
    return {
        'flags': flags,
        'stage': dataclasses.asdict(stage),
        'network': dataclasses.asdict(network.config),
        'commit': code_version(),
        'torch': torch.__version__,
        'processes': world_size(),
        'launch': launch_id(),
    }


def code_version() -> str | None:
    """The git commit of this code, with ``-dirty`` where it was changed; ``None`` outside of a repository."""
    try:
        command = [
            'git',
            '-C',
            str(Path(__file__).parent),
            'describe',
            '--always',
            '--dirty',
            '--abbrev=40',
            '--exclude=*',
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
