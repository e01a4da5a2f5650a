"""What the web page tells its user: errors that can be mended, and what is logged about his files."""

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
    """What the user can mend becomes a message on the page; what follows the block then changes nothing."""
    try:
        yield
    except TooLittleMemoryError as error:
        gr.Warning(f'{error}. The masks up to here are kept. These are flags of scripts/web.py; so is --device cpu.')
    except (UserError, OSError) as error:
        gr.Warning(html.escape(str(error).splitlines()[0]))  # there may be names of the user's files in it


class Overheard(logging.Handler):
    """Collects what is logged about masks in this thread: which colour is which object, what was left out, resized."""

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
        """Show it on the page."""
        for line in self.lines[:SHOWN]:
            gr.Info(html.escape(line))
        if len(self.lines) > SHOWN:
            gr.Info(f'and {len(self.lines) - SHOWN} more such lines, on the terminal of scripts/web.py')
