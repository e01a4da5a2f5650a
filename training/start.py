"""What comes before a run: its processes and their device, random numbers, precision."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

from util.distributed import broadcast, choose_device, process_group, rank

P = ParamSpec('P')
T = TypeVar('T')


@contextmanager
def processes(device_name: str | None) -> Iterator[torch.device]:
    """Connect the processes of torchrun for the block, and give this process's device. Only the first process logs."""
    device = choose_device(device_name)
    if rank() > 0:
        logging.getLogger().setLevel(logging.WARNING)
    with process_group('nccl' if device.type == 'cuda' else 'gloo'):
        yield device


def decided_once(decide: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Call ``decide``, which looks at the run's folder, in the first process only. Return its result in all."""
    return broadcast(decide(*args, **options) if rank() == 0 else None)


def prepare(*, seed: int, benchmark: bool = False, debug: bool = False) -> None:
    """Set up PyTorch for a run.

    Args:
        seed: of the initial weights.
        benchmark: whether cuDNN tries its algorithms and takes the fastest.
        debug: whether autograd names the operation whose gradient is not a number.
    """
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = benchmark
    torch.autograd.set_detect_anomaly(debug)


def mixed_precision(device: torch.device, *, name: str | None = None, off: bool = False) -> torch.dtype | None:
    """The type of automatic mixed precision, by default float16 on a GPU; ``None``: float32 throughout."""
    if off:
        return None
    if name:
        return getattr(torch, name)
    return torch.float16 if device.type == 'cuda' else None
