"""The last changes of a folder of files, each of which can be taken back."""

import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

KEPT = 20  # changes; each holds a copy of every file that it touched

State = TypeVar('State')


@dataclass
class _Change(Generic[State]):
    what: str
    state: State  # of the owner, before it
    copies: Path  # of the files as they were
    touched: set[str] = field(default_factory=set)


class Undo(Generic[State]):
    """Copies of the files in a folder, made before a change touches them for the first time.

    Args:
        folder: that of the files.
        copies: the folder for the copies; nobody else's.
    """

    def __init__(self, folder: Path, copies: Path):
        self.folder = folder
        self.copies = copies
        self._changes: deque[_Change[State]] = deque()
        self.count = 0  # changes that were ever begun
        self._open: _Change[State] | None = None

    @property
    def last(self) -> str | None:
        """What the last change was, in the words of :meth:`change`; ``None`` where there is none."""
        return self._changes[-1].what if self._changes else None

    @contextmanager
    def change(self, what: str, state: State) -> Iterator[None]:
        """The block is one change. Ended by an exception, it counts up to there.

        Args:
            what: in a few words.
            state: what :meth:`back` is to return, not changed afterwards.
        """
        if self._open is not None:  # part of a larger change
            yield
            return
        self.count += 1
        self._open = _Change(what, state, self.copies / str(self.count))
        self._changes.append(self._open)
        if len(self._changes) > KEPT:
            shutil.rmtree(self._changes.popleft().copies, ignore_errors=True)
        try:
            yield
        finally:
            self._open = None

    def touch(self, path: Path) -> None:
        """A file is about to be written or deleted. Inside a :meth:`change`."""
        change = self._open
        assert change is not None
        if path.name not in change.touched:
            if path.exists():
                change.copies.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, change.copies / path.name)
            change.touched.add(path.name)

    def back(self) -> tuple[str, State]:
        """Take the last change back: its files are as they were before. Returns what it was, and the state before.

        Raises:
            IndexError: there is none.
        """
        change = self._changes.pop()
        for name in sorted(change.touched):
            copy, path = change.copies / name, self.folder / name
            if copy.exists():
                copy.replace(path)
            else:
                path.unlink(missing_ok=True)
        shutil.rmtree(change.copies, ignore_errors=True)
        return change.what, change.state
