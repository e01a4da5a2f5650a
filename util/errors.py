"""What a user can mend is one kind of exception, whatever part of the program found it."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something that the user can mend. The message: which file or value, what was expected, found, what to do."""


class DataError(UserError, ValueError):
    """The user's data is not what it has to be."""


class MissingPackageError(UserError):
    """An optional package is not installed. The message says how to install it."""


@contextmanager
def foreign_call(kind: type[UserError], before: str, after: str = '') -> Iterator[None]:
    """Around one call of a library that fails in ways of its own: whatever it raises becomes a ``kind``.

    The message is ``before``, the cause in brackets, ``after``. Too little memory stays what it is.
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
    """Whether its message says all: it is ours, or the system has no more of files, memory or numbers to give."""
    ours = UserError | OSError | MemoryError | FloatingPointError
    return isinstance(error, ours) or type(error).__name__ == 'OutOfMemoryError'  # torch's, without importing it


def lacks_shared_memory(error: BaseException) -> bool:
    """Whether a process that loads data could not hand on what it loaded; PyTorch says so only in words."""
    text = str(error)
    return isinstance(error, RuntimeError | OSError) and (
        'shared memory' in text or ('</torch_' in text and 'No space left' in text)
    )
