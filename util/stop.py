"""Two ways to end on Ctrl-C or SIGTERM: an exception at once, or a request that a loop looks at between its steps."""

import logging
import signal
import threading

log = logging.getLogger(__name__)


class Stopped(KeyboardInterrupt):
    """A signal ended the work. As with Ctrl-C, half-written files are removed and finished ones stay."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = number


def stop_on_sigterm() -> None:
    """From now on SIGTERM raises :class:`Stopped`, instead of ending the process at once."""
    signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, _frame) -> None:
    raise Stopped(number)


def stopped_by(error: BaseException | None) -> int:
    """The signal that led to an error, or 0. An interrupted library may have raised an error of its own instead."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return 0 if error is None else getattr(error, 'signal', signal.SIGINT)


class StopRequest:
    """In its block, the first SIGTERM or SIGINT does not end the process; a second one does.

    The first one is noted in ``signal`` (0: none came), and ``message`` is logged.
    """

    def __init__(self, message: str | None = None):
        self.signal = 0
        self.message = message

    def __enter__(self) -> 'StopRequest':
        # Only the main thread gets signals, and Python forbids other threads to set handlers for them.
        numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number: int, _frame) -> None:
        if self.signal:
            raise Stopped(number)
        self.signal = number
        if self.message:
            log.warning(self.message)

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
