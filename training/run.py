"""The folder of a run: configuration, checkpoints, final weights."""

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
from model import CheckpointError, Network, save_network
from model.checkpoint import read_checkpoint
from util.files import atomic_path

log = logging.getLogger(__name__)

KEPT = 3  # checkpoints


class Run:
    """``saves/<id>``: ``config.json``, ``checkpoint_<iteration>.pth``, ``best.pth``, in the end ``<id>.pth``.

    Without a folder nothing is written and nothing is found: that is ``--id NULL``.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder

    @property
    def weights(self) -> Path | None:
        """Where the final weights go."""
        return None if self.folder is None else self.folder / f'{self.folder.name}.pth'

    def configuration(self) -> dict | None:
        """That of the last start, or ``None``. Raises ``CheckpointError`` on an unreadable one."""
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

    def checkpoints(self) -> list[Path]:
        """By iteration, the newest first. They were complete when they got their names."""
        if self.folder is None or not self.folder.is_dir():
            return []
        found = {
            int(match[1]): path
            for path in self.folder.iterdir()
            if (match := re.fullmatch(r'checkpoint_(\d+)\.pth', path.name))
        }
        return [found[iteration] for iteration in sorted(found, reverse=True)]

    def newest(self) -> tuple[dict, Path] | None:
        """The newest checkpoint that can be read. One that a failing disk has damaged is passed over."""
        for path in self.checkpoints():
            try:
                return read_checkpoint(path), path
            except CheckpointError as error:
                log.warning('%s; taking the one before', error)
        return None

    def save(self, content: dict) -> None:
        """A checkpoint under its iteration; the oldest ones go once the new one is complete."""
        if self.folder is None:
            return
        with atomic_path(self.folder / f'checkpoint_{content["iteration"]:08d}.pth') as temporary:
            torch.save(content, temporary)
        for old in self.checkpoints()[KEPT:]:
            old.unlink()
        for part in self.folder.glob('.checkpoint_*.part'):  # of a killed process
            part.unlink()

    def save_broken(self, content: dict) -> str:
        """A state that is not to be resumed, to look into; returns where it is."""
        if self.folder is None:
            return 'nowhere, for want of an --id'
        path = self.folder / f'nonfinite_{content["iteration"]:08d}.pth'
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
        return str(path)

    def keep_best(self, network: Network, evaluation: dict) -> None:
        """Write the best network so far to ``best.pth``, with the evaluation that says so under ``evaluation``.

        The evaluation scripts load it as any network. The evaluation has the ``iteration``, the ``size`` at which the
        network worked, ``J``, ``F`` and ``J&F`` in [0, 1] over all objects, and the same for each of the ``videos``.
        """
        if self.folder is not None:
            save_network(self.folder / 'best.pth', network, evaluation=evaluation)

    def best(self) -> dict | None:
        """The evaluation that the best network so far was kept with, if there is one that can be read."""
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


def start_worker(worker_id: int) -> None:
    """``worker_init_fn`` of the DataLoader: a process group of its own.

    Ctrl-C and torchrun's SIGTERM then reach the main process alone, which saves and ends its workers.
    """
    init_worker(worker_id)
    os.setpgid(0, 0)


@contextmanager
def loading_errors() -> Iterator[None]:
    """Errors of the DataLoader's processes in one line: what they raised, or that one of them has died."""
    try:
        yield
    except (DataError, OSError, RuntimeError) as error:
        text = str(error)
        if text.startswith('Caught '):  # with the process's traceback; the message is its end
            raise type(error)(text.rpartition(f'{type(error).__name__}: ')[2].rstrip()) from error
        if text.startswith('DataLoader worker'):
            raise ChildProcessError(
                f'{text} A process that loads data has died, for want of memory perhaps: fewer '
                '--num_workers take less. Continue with --resume.'
            ) from error
        raise


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
