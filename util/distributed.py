"""Processes started by torchrun. Without it, everything here is that of a single process."""
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    return int(os.environ.get('RANK', 0))


def world_size() -> int:
    return int(os.environ.get('WORLD_SIZE', 1))


def default_device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0)))
    return torch.device('cpu')


_patient_group: dist.ProcessGroup | None = None


@contextmanager
def process_group(backend: str) -> Iterator[None]:
    """Connects the processes for the block; does nothing for a single one."""
    global _patient_group
    if world_size() == 1:
        yield
        return
    dist.init_process_group(backend)
    # Shares of the work differ in length, so processes wait for each other as long as it takes; torchrun
    # ends those that wait for one that has died.
    _patient_group = dist.new_group(backend='gloo', timeout=timedelta(days=30))
    try:
        yield
    finally:
        dist.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks, on every process."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value, group=_patient_group)
    return values
