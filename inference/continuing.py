"""A long segmentation that goes on where it was killed: what is kept of it on the disk until it is finished."""

import logging
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dataset.io import DataError, read_mask, some
from inference.outputs import UNFINISHED, OutputError, Outputs, Redrawn
from inference.stream import enough_memory
from util.errors import foreign_call
from util.files import atomic_path

if TYPE_CHECKING:
    from inference.directions import Propagation
    from inference.sources import Source
    from inference.stream import Progress
    from util.stop import StopRequest

log = logging.getLogger(__name__)

SAVE_SECONDS = 10  # of work that a kill can cost
SHARE = 20  # at most one part in so many of the time is spent on saving


class Unfinished:
    """How far a segmentation has come, in a folder that is there as long as it is not finished.

    What one pass has for the other lies in its folder ``waiting``. The memory is kept as it is, keys and values of a
    frame in a file of its own, which is written once; ``state.pt`` names those that are in use. So a run that
    goes on gives the masks of one that was never interrupted, bit for bit on the same machine. What is written is
    bounded by the memory.

    Args:
        output: the folder in which that of the state is.
    """

    def __init__(self, output: Path):
        self.folder = folder = output / UNFINISHED
        self.waiting = folder / 'waiting'
        self._record = folder / 'state.pt'
        self._due = time.monotonic() + SAVE_SECONDS

    def resume(self, way: 'Propagation', outputs: Outputs, source: 'Source') -> None:
        """Go on from the state that an earlier run left, if there is one; from now on this run leaves some.

        Raises:
            DataError: it cannot be read.
            OutputError: masks of frames that were finished are not there any more.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._record.exists():
            return
        self._restore(way, outputs)
        frames = enumerate(islice(source.forwards(), way.finished.stop))
        files = [outputs.masks.path(frame.name) for number, frame in frames if number in way.finished]
        if missing := [str(path) for path in files if not path.exists()]:
            raise OutputError(f'expected the masks of an unfinished run, missed {some(missing)}', replaceable=True)
        log.info('%s: goes on at frame %d, where an earlier run ended', self.folder.parent, way.next_frame)

    def remove(self) -> None:
        """There is nothing to continue any more."""
        self._record.unlink(missing_ok=True)  # first: it names the other files
        shutil.rmtree(self.folder, ignore_errors=True)

    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    def save(self, way: 'Propagation', outputs: Outputs) -> None:
        """Keep the present state. What is there already is not written again.

        A disk that is full costs the continuation, not the run: there is a warning.
        """
        start = time.monotonic()
        way.flush()
        outputs.flush()
        try:
            self._save(way, outputs)
        except OSError as error:
            log.warning('if this run is killed, it will go on from an earlier frame: %s', error)
        now = time.monotonic()
        self._due = now + max(SAVE_SECONDS, SHARE * (now - start))

    def _save(self, way: 'Propagation', outputs: Outputs) -> None:
        state: dict[str, Any] = {'course': way.course, 'done': way.done, 'passed': way.passed, 'cores': []}
        state['outputs'] = [each.state() for each in outputs.files]
        used = {self._record}
        for part, core in enumerate(way.core.parts):
            memory = core.memory
            names = [f'{way.course}_{part}_{serial}.pt' for serial in memory.serials]
            for slot, name in enumerate(names):
                path = self.folder / name
                used.add(path)
                if not path.exists():
                    _write(path, _on_cpu(memory.rows(slot)))
            temporary = _on_cpu(memory.rows(memory.permanent)) if memory.temporary else None
            state['cores'].append({'core': core.state(), 'rows': names, 'temporary': temporary})
        _write(self._record, state)
        for path in self.folder.glob('*.pt'):
            if path not in used:
                path.unlink()

    def _restore(self, way: 'Propagation', outputs: Outputs) -> None:
        state = self._read(self._record)
        way.course, way.done, way.passed = state['course'], state['done'], state['passed']
        for output, gathered in zip(outputs.files, state['outputs'], strict=True):
            output.restore(gathered)
        for core, kept in zip(way.core.parts, state['cores'], strict=True):
            rows = [self._read(self.folder / name) for name in kept['rows']]
            core.restore(kept['core'], [*rows, kept['temporary']] if kept['temporary'] else rows)

    def _read(self, path: Path) -> Any:
        with foreign_call(DataError, f'{path}: cannot be read, so that the run cannot go on'):
            return torch.load(path, map_location='cpu', weights_only=True)


def _on_cpu(rows: Sequence[Tensor]) -> list[Tensor]:
    return [each.cpu() for each in rows]


def _write(path: Path, content: object) -> None:
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def segment_on(
    way: 'Propagation',
    source: 'Source',
    outputs: Outputs,
    unfinished: Unfinished | None,
    *,
    stop: 'StopRequest',
    progress: 'Progress',
) -> None:
    """Write every frame of a video, from where an earlier run was on, up to the one at which ``stop`` was asked for.

    The pictures take frames in their order. Those that an earlier run or a pass backwards has written are drawn with
    the masks in their files.

    Args:
        unfinished: keeps what is done; ``None`` where there is no way to go on.

    Raises:
        DataError, InputError, TooLittleMemoryError, OSError: as :meth:`inference.directions.Propagation.frames`.
    """
    for course in way.courses[way.course :]:
        if not course.is_backwards:
            redraw(source, outputs, way.next_frame, stop)
        with closing(way.frames_of_pass()) as frames:
            while not stop.signal and (frame := next(frames, None)) is not None:
                with enough_memory():
                    outputs.write(frame, in_order=not course.is_backwards)
                progress.advance()
                if unfinished is not None and (stop.signal or unfinished.is_due()):
                    unfinished.save(way, outputs)
    if course.is_backwards:
        redraw(source, outputs, None, stop)


def redraw(source: 'Source', outputs: Outputs, count: int | None, stop: 'StopRequest') -> None:
    """Draw the first frames of a video, or all, with the masks in their files; up to where ``stop`` was asked for.

    Raises:
        DataError: a frame or a mask cannot be read.
    """
    if not outputs.draws:
        return
    outputs.flush()
    for number, frame in enumerate(islice(source.forwards(), count)):
        if stop.signal or (picture := frame.read()) is None:
            return
        labels = torch.from_numpy(read_mask(outputs.masks.path(frame.name)))
        outputs.draw(Redrawn(number, picture.image, picture.pts, labels))
