"""Saves the state of a segmentation until it is finished, so that a run that was killed can be continued."""

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

from dataset.io import read_mask, some
from inference.outputs import UNFINISHED, Outputs, Redrawn, replaceable
from inference.stream import enough_memory
from util.errors import cause_of
from util.files import atomic_path

if TYPE_CHECKING:
    from inference.directions import Propagation
    from inference.sources import Source
    from inference.stream import Progress
    from util.stop import StopRequest

log = logging.getLogger(__name__)

SAVE_SECONDS = 10  # time between two saves: so much work can be lost when a run is killed
SHARE = 20  # saving takes at most 1/SHARE of the time


class Unfinished:
    """Keeps the state of an unfinished segmentation in a folder, which is deleted when the segmentation is finished.

    The memory is saved exactly: each memory frame has a file with its keys and values, which is written once, and
    ``state.pt`` names the files in use. On the same machine, a continued run therefore gives the masks of an
    uninterrupted run, bit for bit. The folder ``waiting`` holds what one pass keeps for the other. The other
    files take about as much disk as the memory takes RAM.

    Args:
        output: the output folder of the run; the state is in a folder in it.
    """

    def __init__(self, output: Path):
        self.folder = folder = output / UNFINISHED
        self.waiting = folder / 'waiting'
        self._record = folder / 'state.pt'
        self._due = time.monotonic() + SAVE_SECONDS

    def resume(self, way: 'Propagation', outputs: Outputs, source: 'Source') -> None:
        """Continue from the state that an earlier run left, if there is one, and make the folder for this run's state.

        Without a state, other files in the folder belong to a run that ended before its first save. They are deleted,
        since this run may have other memory frames of the same names.

        Raises:
            OutputError: the state cannot be read, or masks of finished frames are missing.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.begun:
            for path in self.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return
        self._restore(way, outputs)
        frames = enumerate(islice(source.forwards(), way.finished.stop))
        files = [outputs.masks.path(frame.name) for number, frame in frames if number in way.finished]
        if missing := [str(path) for path in files if not path.exists()]:
            raise replaceable(f'expected the masks of an unfinished run, but these are missing: {some(missing)}')
        log.info('%s: continuing at frame %d, where an earlier run ended', self.folder.parent, way.next_frame)

    @property
    def begun(self) -> bool:
        """Whether an earlier run left a state."""
        return self._record.exists()

    def remove(self) -> None:
        """Delete the state: the segmentation is finished."""
        self._record.unlink(missing_ok=True)  # it goes first, since it names the other files
        shutil.rmtree(self.folder, ignore_errors=True)

    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    def save(self, way: 'Propagation', outputs: Outputs) -> None:
        """Save the present state. Memory frames that are saved already are not written again.

        If the disk is full, the run goes on with a warning; a later run then continues from an earlier frame.
        """
        start = time.monotonic()
        way.flush()
        outputs.flush()
        try:
            self._save(way, outputs)
        except OSError as error:
            log.warning(
                'the state was not saved; if this run is killed, it can only be continued from an earlier frame: %s',
                error,
            )
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
        path = self._record
        try:
            state = _read(path)
            way.course, way.done, way.passed = state['course'], state['done'], state['passed']
            for output, gathered in zip(outputs.files, state['outputs'], strict=True):
                output.restore(gathered)
            for core, kept in zip(way.core.parts, state['cores'], strict=True):
                rows = [_read(path := self.folder / name) for name in kept['rows']]
                core.restore(kept['core'], [*rows, kept['temporary']] if kept['temporary'] else rows)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise replaceable(
                f'{path}: cannot be read, so the run cannot be continued: it is damaged or of another version '
                f'({type(error).__name__}: {cause_of(error)})'
            ) from error


def _on_cpu(rows: Sequence[Tensor]) -> list[Tensor]:
    return [each.cpu() for each in rows]


def _read(path: Path) -> Any:
    return torch.load(path, map_location='cpu', weights_only=True)


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
    """Write the remaining frames of a video until the end, or until ``stop`` is requested.

    The overlay video needs the frames in order. Frames that an earlier run or the backward pass has segmented are
    therefore drawn from their mask files first.

    Args:
        unfinished: where the state is saved; ``None`` if the run cannot be continued later.

    Raises:
        DataError, InputError, TooLittleMemoryError, OSError: see :meth:`inference.directions.Propagation.frames`.
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
        if stop.signal:
            return
    if course.is_backwards:
        redraw(source, outputs, None, stop)


def redraw(source: 'Source', outputs: Outputs, count: int | None, stop: 'StopRequest') -> None:
    """Draw the first ``count`` frames of a video (``None``: all) from their mask files, until ``stop`` is requested.

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
