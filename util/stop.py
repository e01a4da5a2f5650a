"""Ctrl-C and SIGTERM as a wish."""
import logging
import signal

log = logging.getLogger(__name__)


class StopRequest:
    """Takes note of SIGTERM and SIGINT within its block, instead of ending the process; a second one does.

    ``signal`` is the one that came, 0 for none. ``message`` is logged when it comes.
    """

    def __init__(self, message: str | None = None):
        self.signal = 0
        self.message = message

    def __enter__(self) -> 'StopRequest':
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, _frame) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        if self.message:
            log.warning(self.message)

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
