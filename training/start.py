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
    """This process's device; the processes of torchrun are connected for the block, and only the first one logs."""
    device = choose_device(device_name)
    if rank() > 0:
        logging.getLogger().setLevel(logging.WARNING)
    with process_group('nccl' if device.type == 'cuda' else 'gloo'):
        yield device


def decided_once(decide: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """What ``decide`` returns in the first process, in all of them: it alone looks at the folder of the run."""
    return broadcast(decide(*args, **options) if rank() == 0 else None)


def prepare(*, seed: int, benchmark: bool = False, debug: bool = False) -> None:
    """Seed the initial weights; let cuDNN try its algorithms, let autograd look for what is no number."""
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
