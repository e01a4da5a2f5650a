"""Messages of the web page: errors that the user can fix, and log lines about the user's files."""

import html
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from inference.stream import TooLittleMemoryError
from util.errors import UserError

SHOWN = 8  # lines at a time


@contextmanager
def told() -> Iterator[None]:
    """Show errors that the user can fix as messages on the page. The code after the block then runs as usual."""
    try:
        yield
    except TooLittleMemoryError as error:
        gr.Warning(
            f'{error}. The masks up to here are kept. All flags named here are those of scripts/web.py; '
            '--device cpu avoids the GPU.'
        )
    except (UserError, OSError) as error:
        gr.Warning(
            html.escape(str(error).splitlines()[0])
        )  # it may have names of the user's files, which must not become HTML


class Overheard(logging.Handler):
    """Collects the log lines about imported masks in this thread, for example which files were left out."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.thread = threading.get_ident()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread and record.name.startswith(('dataset.', 'inference.')):
            self.lines.append(record.getMessage())

    def __enter__(self) -> 'Overheard':
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_) -> None:
        logging.getLogger().removeHandler(self)

    def tell(self) -> None:
        """Show the collected lines on the page."""
        for line in self.lines[:SHOWN]:
            gr.Info(html.escape(line))
        if len(self.lines) > SHOWN:
            gr.Info(f'and {len(self.lines) - SHOWN} more such lines, on the terminal of scripts/web.py')
