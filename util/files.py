"""Files that are whole or not there."""
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path``, renamed to it when the block ends well.

    The parent folder is created. On an exception nothing is left and ``path`` is as it was; a process
    killed inside the block leaves a hidden ``.NAME.part``, which the next one replaces.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.part')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
