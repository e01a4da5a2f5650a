"""Writes files so that they are complete or absent, with errors that say which file failed and what to do."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from util.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PROBE = 1 << 20  # bytes written to test whether the disk is full


@contextmanager
def atomic_path(path: str | Path, *, shared: bool = False) -> Iterator[Path]:
    """Give a temporary path in the folder of ``path``, and rename it to ``path`` when the block ends well.

    The parent folder is created. After an exception, ``path`` is unchanged and no temporary file is left.
    A process that is killed inside the block leaves a hidden ``.NAME.part``, which the next writer replaces.

    Args:
        shared: several processes may write the same file at once. Each has its own ``.NAME.PID.part``, and
            the last one to finish wins.

    Raises:
        OSError: the disk is full, or the folder is read-only or not a folder; the message names ``path``.
    """
    path = Path(path)
    temporary = _temporary(path, f'.{os.getpid()}' if shared else '')
    with _speaking_of(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        except RuntimeError:  # torch.save raises it for a full disk, too; then _probe gives the clearer error
            _probe(temporary)
            raise
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Do for a folder what :func:`atomic_path` does for a file.

    Raises:
        OSError: see :func:`atomic_path`; or ``path`` exists and is not an empty folder.
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


@contextmanager
def locked_folder(folder: str | Path) -> Iterator[None]:
    """Keep other processes from writing to a folder, which is created. The system ends the lock with the process.

    If the folder was not there before and is still empty at the end, it is deleted.

    Where the file system or the system has no such locks, nothing is locked. A process that this one forks holds the
    lock, too.

    Raises:
        UserError: another process holds the lock.
        OSError: see :func:`atomic_path`.
    """
    folder = Path(folder)
    is_new = not os.path.exists(folder)
    with _speaking_of(folder, folder):
        folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f'{folder}: another run is writing to it; wait for its end, or stop it') from None
    except OSError:
        pass  # a network file system without locks
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        os.close(handle)


def check_writable(path: str | Path) -> None:
    """Raise ``OSError`` if a file cannot be written. Call it before the work whose result the file will hold."""
    path = Path(path)
    temporary = _temporary(path)
    with _speaking_of(path, temporary):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        temporary.unlink()


def require_disk(folder: Path, size: int, name: str) -> None:
    """Raise ``OSError`` if fewer than ``size`` bytes are free. In the message, ``name`` is what needs them."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(f'{name} needs {gigabytes(size)} of free disk, found {gigabytes(free)} in {folder}')


def gigabytes(size: int) -> str:
    """Format a number of bytes as GB or MB."""
    return f'{size / 1e9:,.1f} GB' if size >= 1e8 else f'{size / 1e6:,.1f} MB'


def _temporary(path: Path, owner: str = '') -> Path:
    return path.with_name(f'.{path.name}{owner}.part')


@contextmanager
def _speaking_of(path: Path, temporary: Path) -> Iterator[None]:
    """Turn an ``OSError`` about the temporary file, its folder or no file into one that names ``path``."""
    try:
        yield
    except OSError as error:
        places = {str(place) for place in (error.filename, error.filename2) if place is not None}
        if error.errno is None or (places and places.isdisjoint(map(str, (path, temporary, *path.parents)))):
            raise  # the message is complete already, or is about another file, such as a missing input
        cause = error.strerror
        if isinstance(error, FileExistsError | NotADirectoryError):
            there = next((each for each in (path, *path.parents) if each.exists() and not each.is_dir()), path.parent)
            cause = f'{there} has to be a folder'
        advice = 'Make room' if error.errno in FULL else 'Choose another place or make this one writable'
        told = OSError(f'{path}: cannot be written ({cause}). {advice}, and run this again.')
        told.errno = error.errno
        raise told from error


def _probe(temporary: Path) -> None:
    """Raise ``OSError`` if the disk is full."""
    with open(temporary, 'ab') as file:
        file.write(bytes(PROBE))
