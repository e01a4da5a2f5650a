"""The data of a run: batches to train on, and the videos that are held aside to validate with."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from dataset.held_aside import find_held_aside
from dataset.sampling import AddressedDataset, AddressSampler
from dataset.sampling import check_batch as check_shares
from dataset.training import open_training_set
from training.evaluation import Validation
from training.run import start_worker
from training.stages import Stage
from util.distributed import rank, world_size

__all__ = ['check_batch', 'open_loader', 'open_training_set', 'open_validation']


def check_batch(stage: Stage, *, accumulation: int) -> None:
    """Raises ``ValueError`` if a batch does not divide among the processes and accumulation steps."""
    check_shares(stage.batch_size, accumulation=accumulation, world_size=world_size())


def open_loader(
    dataset: AddressedDataset,
    stage: Stage,
    *,
    seed: int,
    start: int = 0,
    accumulation: int = 1,
    num_workers: int = 0,
    device: torch.device,
) -> DataLoader:
    """Open a loader of this process's share of every batch, beginning with iteration ``start``.

    The share of each batch comes as ``accumulation`` micro-batches.
    """
    sampler = AddressSampler(
        len(dataset),
        batch_size=stage.batch_size,
        iterations=stage.iterations,
        seed=seed,
        start=start,
        accumulation=accumulation,
        rank=rank(),
        world_size=world_size(),
        schedule=stage.max_skip,
    )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        worker_init_fn=start_worker,
        pin_memory=device.type == 'cuda',
    )


def open_validation(
    names: Iterable[str],
    *,
    davis_root: str | Path,
    yv_root: str | Path,
    video_roots: Iterable[str | Path] = (),
    every: int,
    at_start: bool = False,
    size: int = 480,
    best: dict | None = None,
) -> Validation:
    """Validation on videos of these names, found below the roots of the data sets; see ``Validation`` for the rest."""
    videos = find_held_aside(names, davis_root=davis_root, yv_root=yv_root, video_roots=video_roots)
    return Validation(videos, every=every, at_start=at_start, size=size, best=best)
