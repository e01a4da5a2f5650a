"""Keeps copies of the files in a folder, so that the last changes can be undone."""

import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

KEPT = 20  # changes that can be undone; each has a copy of every file that it touched

State = TypeVar('State')


@dataclass
class _Change(Generic[State]):
    what: str
    state: State  # the owner's state before the change
    copies: Path  # folder with the files as they were before the change
    touched: set[str] = field(default_factory=set)


class Undo(Generic[State]):
    """Copies the files of a folder before a change touches them for the first time, and restores them on request.

    Args:
        folder: the folder of the files.
        copies: the folder for the copies, which nothing else may use.
    """

    def __init__(self, folder: Path, copies: Path):
        self.folder = folder
        self.copies = copies
        self._changes: deque[_Change[State]] = deque()
        self.count = 0  # number of changes begun so far
        self._open: _Change[State] | None = None

    @property
    def last(self) -> str | None:
        """The description of the last change, as given to :meth:`change`; ``None`` if there is none."""
        return self._changes[-1].what if self._changes else None

    @contextmanager
    def change(self, what: str, state: State) -> Iterator[None]:
        """Everything in the block is one change. If an exception ends it, what was done until then is the change.

        Args:
            what: a short description.
            state: the value that :meth:`back` returns; it must not be modified afterwards.
        """
        if self._open is not None:  # the block is part of a larger change
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
        """Keep a copy of a file that is about to be written or deleted. Call it inside a :meth:`change`."""
        change = self._open
        assert change is not None
        if path.name not in change.touched:
            if path.exists():
                change.copies.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, change.copies / path.name)
            change.touched.add(path.name)

    def back(self) -> tuple[str, State]:
        """Undo the last change by restoring its files. Returns its description and the state before it.

        Raises:
            IndexError: there is no change to undo.
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
