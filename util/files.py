"""Files that are whole or not there, and errors that say which file and what to do."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PROBE = 1 << 20  # bytes


@contextmanager
def atomic_path(path: str | Path, *, shared: bool = False) -> Iterator[Path]:
    """A temporary path in the folder of ``path``, renamed to it when the block ends well.

    The parent folder is created. On an exception nothing is left and ``path`` is as it was; a process
    killed inside the block leaves a hidden ``.NAME.part``, which the next one replaces.

    Args:
        shared: several processes may write the same file at once, of which any may win: each has its own
            ``.NAME.PID.part``.

    Raises:
        OSError: the disk is full, the folder is read-only or none; the message names ``path``.
    """
    path = Path(path)
    temporary = _temporary(path, f'.{os.getpid()}' if shared else '')
    with _speaking_of(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        except RuntimeError:  # all that torch.save says of a full disk
            _probe(temporary)
            raise
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, renamed to it when the block ends well: as :func:`atomic_path`, of a folder.

    Raises:
        OSError: as :func:`atomic_path`; or ``path`` exists and is no empty folder.
    """
    path = Path(path)
    temporary = _temporary(path)
    with _speaking_of(path, temporary):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OSError(f'{path}: exists already. Delete it or choose another place.')
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            yield temporary
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: str | Path) -> None:
    """Raises ``OSError`` as ``atomic_path``, before the hours of work that lead to the file."""
    path = Path(path)
    temporary = _temporary(path)
    with _speaking_of(path, temporary):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        temporary.unlink()


def require_disk(folder: Path, size: int, name: str) -> None:
    """Raises ``OSError`` if fewer than ``size`` bytes are free for what ``name`` says."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(f'{name} needs {gigabytes(size)} of free disk, found {gigabytes(free)} in {folder}')


def gigabytes(size: int) -> str:
    """Bytes as a person reads them."""
    return f'{size / 1e9:,.1f} GB' if size >= 1e8 else f'{size / 1e6:,.1f} MB'


def _temporary(path: Path, owner: str = '') -> Path:
    return path.with_name(f'.{path.name}{owner}.part')


@contextmanager
def _speaking_of(path: Path, temporary: Path) -> Iterator[None]:
    """What the system says of the temporary file, of its folder or of no file becomes a message on ``path``."""
    try:
        yield
    except OSError as error:
        places = {str(place) for place in (error.filename, error.filename2) if place is not None}
        if error.errno is None or (places and places.isdisjoint(map(str, (path, temporary, *path.parents)))):
            raise  # it speaks for itself, or of another file: an input that is missing
        cause = error.strerror
        if isinstance(error, FileExistsError | NotADirectoryError):
            cause = f'{path.parent} has to be a folder'
        advice = 'Make room' if error.errno in FULL else 'Choose another place or make this one writable'
        told = OSError(f'{path}: cannot be written ({cause}). {advice}, and run this again.')
        told.errno = error.errno
        raise told from error


def _probe(temporary: Path) -> None:
    """Raises ``OSError`` if the disk takes no more."""
    with open(temporary, 'ab') as file:
        file.write(bytes(PROBE))
