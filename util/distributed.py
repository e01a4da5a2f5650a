"""The processes that torchrun starts, and their devices. Without torchrun there is one process."""

import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from util.errors import UserError
from util.ranks import rank as rank
from util.ranks import world_size as world_size

log = logging.getLogger(__name__)


def choose_device(name: str | torch.device | None) -> torch.device:
    """Choose a device of this computer, and make it the current one of this thread.

    Without a name it is this process's GPU; on a Mac it is ``mps``, the Mac's GPU; without a GPU it is the CPU. Plain
    ``cuda`` is this process's GPU, too.

    Raises:
        UserError: it is not there, or PyTorch cannot use it.
    """
    name = str(name or '') or _default_device()
    if name == 'cuda':
        name = f'cuda:{os.environ.get("LOCAL_RANK", 0)}'
    try:
        device = torch.device(name)
        use_device(device)
        torch.zeros(1, device=device).item()  # only its use shows whether it works
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # depends on the kind of the device, and on the version of PyTorch
        there = ['cpu', *(f'cuda:{index}' for index in range(torch.cuda.device_count()))]
        there += ['mps'] if torch.backends.mps.is_available() else []
        without = '' if torch.backends.cuda.is_built() or 'cuda' not in name else ' (built without CUDA)'
        raise UserError(
            f'{name}: expected a device of this computer ({", ".join(there)}), found none of this name that '
            f'PyTorch {torch.__version__}{without} can use'
        ) from error
    return device


def _default_device() -> str:
    if torch.cuda.is_available():
        return 'cuda'
    if not torch.backends.mps.is_available():
        return 'cpu'
    if os.environ.get('PYTORCH_ENABLE_MPS_FALLBACK') == '1':
        lacking = 'what it cannot do is computed on the CPU'
    else:
        lacking = 'what it cannot do is an error, unless PYTORCH_ENABLE_MPS_FALLBACK=1 is set before torch is imported'
    log.warning("device: mps, this Mac's GPU, on which nothing was tested; %s. The device cpu is tested.", lacking)
    return 'mps'


def use_device(device: torch.device) -> None:
    """Make a GPU the current one of this thread; else some allocations would go to the first GPU."""
    if device.type == 'cuda' and device.index is not None:
        torch.cuda.set_device(device)


_patient_group: dist.ProcessGroup | None = None


def _fresh(store: dist.Store) -> dist.Store:
    """A part of torchrun's store that nobody has written to.

    torchrun keeps its store when it restarts the processes. In it new processes would find the addresses of those that
    have died, and wait for them (pytorch/pytorch#135712). So each process gives itself a new name, and rank 0 tells
    each name which part of the store to use. The names of processes that have died may still be there: rank 0 answers
    them, too, but nobody reads these answers.
    """
    name = uuid.uuid4().hex
    store.set(f'name/{rank()}', name)
    if rank() > 0:
        part = store.get(f'part for {name}').decode()
        store.set(f'{part} entered by {rank()}', '')
        return dist.PrefixStore(part, store)
    missing = set(range(1, world_size()))
    while missing:
        for other in missing:
            store.set(f'part for {store.get(f"name/{other}").decode()}', name)
        missing = {other for other in missing if not store.check([f'{name} entered by {other}'])}
        time.sleep(0.02)
    return dist.PrefixStore(name, store)


@contextmanager
def process_group(backend: str) -> Iterator[None]:
    """Connects the processes for the block; does nothing for a single one."""
    global _patient_group
    if world_size() == 1:
        yield
        return
    store, _, _ = next(dist.rendezvous('env://'))
    dist.init_process_group(backend, store=_fresh(store), rank=rank(), world_size=world_size())
    # The processes need different times for their shares of the work, so they wait for each other without a limit.
    # If one of them dies, torchrun ends those that wait for it.
    group = dist.new_group(backend='gloo', timeout=timedelta(days=30))
    assert isinstance(group, dist.ProcessGroup)  # only a process outside of the group gets a number instead
    _patient_group = group
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


def broadcast(value: Any) -> Any:
    """Rank 0's value, on every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_patient_group)
    return values[0]


def any_process(flag: bool) -> bool:
    """Whether it is true on at least one process. Does not wait for GPUs."""
    if world_size() == 1:
        return flag
    value = torch.tensor(int(flag))
    dist.all_reduce(value, op=dist.ReduceOp.MAX, group=_patient_group)
    return bool(value)


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The sum on every process, in place; on the tensor's device."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def launch_id() -> str | None:
    """The name that torchrun was given for this job, the same after a restart; ``None`` if it was given none."""
    name = os.environ.get('TORCHELASTIC_RUN_ID')
    return None if name == 'none' else name


def restarted() -> bool:
    """Whether torchrun has started these processes again after a failure."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0
