"""Runs evaluation scripts for the rows of a table, each in its own process, and scores them. No row is run twice."""

import argparse
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
    """The results of a run. ``jf``, ``j``, ``f`` are in percent, ``peak`` in MiB; NaN if a number is not known."""

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
    """Run a script of ``RUNS`` and score its masks, or return the results of an earlier run.

    An earlier run counts if it had the same command and checkpoint files with the same content. If a checkpoint file
    has changed since then, the old masks are deleted.

    Args:
        script: a name in ``RUNS``.
        arguments: the command line of the script without ``--output``.
        folder: its output folder; the results are saved beside it in ``folder.json``.
        flags: the user's further flags, which come last.
        truths: reads the ground truth; ``None`` if it is not public, and there are no scores then.
    """
    arguments = [*arguments, '--output', str(folder), *flags]
    command = shlex.join(['python', script, *arguments])
    finished = folder.with_suffix(folder.suffix + '.json')
    network = network_hashes(_model_files(arguments))
    before = _read(folder / SETTINGS_FILE).get('network', network)  # of the masks in the folder, if any
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
        # Unknown if an earlier run was interrupted after it had finished all videos.
        fps=summary.frames / summary.propagation if summary.frames else math.nan,
        peak=summary.peak_memory / 2**20 if summary.frames else math.nan,
    )
    with atomic_path(finished) as temporary:
        temporary.write_text(json.dumps(asdict(measurement) | {'network': network}, indent=2) + '\n')
    return measurement


def _read(path: Path) -> dict:
    """Read a JSON file; a missing one is an empty dictionary."""
    return json.loads(path.read_text()) if path.exists() else {}


def _model_files(arguments: Sequence[str]) -> list[str]:
    """The checkpoint files in a command line, of its last ``--model``."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--model', nargs='+', required=True)
    return parser.parse_known_args(arguments)[0].model


def segment(script: str, arguments: Sequence[str]) -> 'Summary':
    """Run a script in its own process, so that the peak memory of the process is that of the run.

    Raises:
        DataError: some of the videos could not be segmented.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn'), initializer=set_up_logging) as pool:
        try:
            summary = pool.submit(RUNS[script], arguments).result()
        except BaseException:  # also a signal: the process must not go on with the run
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    if summary.failures:
        raise DataError(f'{summary}\nfinished rows are kept')
    return summary
