"""The errors that a user can mend, which scripts print as one line."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """An error that the user can mend. Its message names the file or value, what was expected and found, what to do.

    Args:
        options: names of the options that the advice is about. Scripts add them to the message as flags.
    """

    def __init__(self, message: str = '', *, options: Sequence[str] = ()):
        super().__init__(message)
        self.options = tuple(options)


class DataError(UserError, ValueError):
    """The user's data is not what it has to be."""


class MissingPackageError(UserError):
    """An optional package is not installed. The message says how to install it."""


@contextmanager
def foreign_call(kind: type[UserError], before: str, after: str = '') -> Iterator[None]:
    """Turn any exception of the block, which calls a library once, into an error of the class ``kind``.

    The message is ``before``, the cause in brackets, ``after``. A ``MemoryError`` is not changed.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise kind(f'{before} ({cause_of(error)}){after}') from error


def cause_of(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def is_for_the_user(error: BaseException) -> bool:
    """Whether the message of an error is enough for a user: it is ours, or the system lacks a file or memory."""
    ours = UserError | OSError | MemoryError
    return isinstance(error, ours) or type(error).__name__ == 'OutOfMemoryError'  # torch's, without importing it


def lacks_shared_memory(error: BaseException) -> bool:
    """Whether a process that loads data lacked shared memory. PyTorch has no exception for it, only messages."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is None:
        # The locks of processes are in shared memory, too. If one cannot be made, the message does not say so, only
        # "read-only" or "no space".
        raised_in = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__)]
        if raised_in and raised_in[-1].parts[-2:] == ('multiprocessing', 'synchronize.py'):
            return True
    of_torch = ('out of shared memory', 'shared memory(shm)', 'shared memory object')
    return isinstance(error, RuntimeError | OSError) and (
        any(words in text for words in of_torch) or ('</torch_' in text and 'No space left' in text)
    )
