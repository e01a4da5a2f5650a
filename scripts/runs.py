"""Runs of the evaluation scripts as rows of a table: each in a process of its own, scored, and never run twice."""

import itertools
import json
import logging
import math
import multiprocessing
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import eval_davis
import eval_youtube
from dataset.sequence import GroundTruth
from inference.outputs import SETTINGS_FILE
from inference.scoring import score_results
from scripts.flags import network_hashes
from util.cli import cores, set_up_logging
from util.errors import DataError
from util.files import atomic_path

if TYPE_CHECKING:
    from inference.run import Summary

log = logging.getLogger(__name__)

RUNS: dict[str, Callable[[Sequence[str]], 'Summary']] = {
    'eval_davis.py': eval_davis.run,
    'eval_youtube.py': eval_youtube.run,
}


@dataclass(frozen=True)
class Measurement:
    """What a run gave. ``jf``, ``j``, ``f`` in percent, ``peak`` in MiB; NaN where a number is not known."""

    command: str
    jf: float
    j: float
    f: float
    fps: float
    peak: float


def measure(
    script: str,
    arguments: Sequence[str],
    folder: Path,
    *,
    flags: Sequence[str],
    truths: Callable[[], Sequence[GroundTruth]] | None,
) -> Measurement:
    """Run a script of ``RUNS`` and score its masks, or take the numbers from an earlier run.

    That has to be one of the same command, with the same checkpoints in its files. The masks of a checkpoint that was
    replaced since then are deleted.

    Args:
        arguments: its command line but for ``--output``, which is ``folder``; the numbers are kept beside it, in
            ``folder.json``.
        flags: what the user adds to it, which comes last.
        truths: reads the ground truth; ``None`` where it is not public, and there are no scores then.
    """
    arguments = [*arguments, '--output', str(folder), *flags]
    command = shlex.join(['python', script, *arguments])
    finished = folder.with_suffix(folder.suffix + '.json')
    network = network_hashes(_model_files(arguments))
    before = _read(folder / SETTINGS_FILE).get('network', network)  # that of the masks, if there are some
    kept = _read(finished)
    if kept and kept['command'] == command and kept.get('network', before) == network:
        log.info('%s: finished before', folder.name)
        return Measurement(**{field.name: kept[field.name] for field in fields(Measurement)})
    log.info('%s', command)
    summary = segment(script, [*arguments, '--overwrite'] if before != network else arguments)
    scores = (math.nan,) * 3
    if truths is not None:
        total = score_results(truths(), folder, num_workers=cores())
        scores = (100 * total['J&F'], 100 * total['J']['mean'], 100 * total['F']['mean'])
    measurement = Measurement(
        command,
        *scores,
        # Not known where all videos were finished before, by a run that was interrupted after that.
        fps=summary.frames / summary.propagation if summary.frames else math.nan,
        peak=summary.peak_memory / 2**20 if summary.frames else math.nan,
    )
    with atomic_path(finished) as temporary:
        temporary.write_text(json.dumps(asdict(measurement) | {'network': network}, indent=2) + '\n')
    return measurement


def _read(path: Path) -> dict:
    """A file of JSON, or nothing."""
    return json.loads(path.read_text()) if path.exists() else {}


def _model_files(arguments: Sequence[str]) -> list[str]:
    """The checkpoints in a command line; the last ``--model`` counts."""
    last = max(index for index, word in enumerate(arguments) if word == '--model')
    return list(itertools.takewhile(lambda word: not word.startswith('--'), arguments[last + 1 :]))


def segment(script: str, arguments: Sequence[str]) -> 'Summary':
    """A run in a process of its own, whose peak memory is then that of this run.

    Raises:
        DataError: some of the videos could not be segmented.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn'), initializer=set_up_logging) as pool:
        try:
            summary = pool.submit(RUNS[script], arguments).result()
        except BaseException:  # a signal, too: nothing waits for the rest of the run
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    if summary.failures:
        raise DataError(f'{summary}\nthe finished rows are kept')
    return summary
