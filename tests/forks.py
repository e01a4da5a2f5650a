"""Scripts in processes of their own, for tests that kill them or let several work together."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(
    ['tests.forks', 'tests.tiny', 'inference.run', 'dataset.davis', 'dataset.youtube', 'dataset.folder']
)


class Forking(ProcessPoolExecutor):
    """In place of a ``ProcessPoolExecutor``: its processes are forked as those of ``start`` are."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options | {'mp_context': SERVER})


def start(words: Sequence[object], log: Path, **environment: object) -> BaseProcess:
    """Start a script: ``words`` are its path in the repository and its flags; what it says goes to ``log``.

    It is forked from a process that has imported what evaluations need, and has done nothing else: importing PyTorch
    anew would take each of them seconds.
    """
    arguments = ([*map(str, words)], log, {name: str(value) for name, value in environment.items()})
    process = SERVER.Process(target=_run, args=arguments, daemon=True)
    process.start()
    return process


def _run(words: list[str], log: Path, environment: dict[str, str]) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    sys.argv = words
    runpy.run_path(words[0], run_name='__main__')
