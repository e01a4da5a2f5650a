"""Work that threads share on a CPU, a piece at a time, so that what a piece needs stays in the cache of one core.

By itself PyTorch divides each operation among its threads, which then wait for each other. Where operations are short,
they gain little or nothing from that.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar('Piece')


def share(pieces: Iterable[Piece], workers: Sequence[Callable[[Iterator[Piece]], None]]) -> None:
    """Call each worker in a thread of its own, with one iterator for all, from which it takes its next piece.

    There are at most ``torch.get_num_threads()`` workers; one alone is called in this thread. They compute without
    gradients, and with the autocast of this thread.
    """
    remaining = iter(pieces)
    dtype, enabled = torch.get_autocast_dtype('cpu'), torch.is_autocast_enabled('cpu')

    def call(worker: Callable[[Iterator[Piece]], None]) -> None:
        with torch.inference_mode(), torch.autocast('cpu', dtype=dtype, enabled=enabled):
            worker(remaining)

    if len(workers) == 1:
        call(workers[0])
    else:
        list(_pool(torch.get_num_threads()).map(call, workers))


@functools.cache
def _pool(count: int) -> ThreadPoolExecutor:
    """Make threads in which PyTorch starts no others."""
    ready = threading.Barrier(count + 1)

    def start() -> None:
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(count, 'model', start)
    for _ in range(count):
        pool.submit(int)  # starts a thread, since none is idle before all are ready
    ready.wait()
    torch.set_num_threads(count)  # also in other threads that begin later, which would have 1
    return pool


os.register_at_fork(after_in_child=_pool.cache_clear)  # the threads are not there in a child
