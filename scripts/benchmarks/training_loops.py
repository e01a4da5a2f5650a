"""Times the parts of a training step in this repository's loop and in a plain one."""

import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from dataset.sampling import AddressSampler
from dataset.static import find_pairs
from dataset.synthetic import SyntheticDataset
from model import VARIANTS, Network, build_network
from model.clip import segment_clip
from model.losses import clip_loss
from scripts.benchmarks.baseline import comparable, straightforward
from scripts.benchmarks.harness import synchronize
from training.loop import to_device
from training.run import start_worker
from training.stages import STAGES
from util.distributed import choose_device

PARTS = ('data', 'forward', 'backward', 'optimizer')


class Loop(NamedTuple):
    network: Network
    optimizer: torch.optim.Optimizer
    recompute: bool = False


def measure(
    arch: str,
    *,
    static_root: str | Path,
    crop_size: int,
    batch_size: int,
    num_workers: int,
    steps: int,
    amp_dtype: str | None,
    recompute: bool,
    compiled: bool,
    device_name: str | None,
) -> dict[str, list[list[float]]]:
    """Time the loops, which take turns. Returns name of a loop -> for each step the seconds of ``PARTS``."""
    device = choose_device(device_name)
    dataset = SyntheticDataset(find_pairs(static_root), size=crop_size)
    sampler = AddressSampler(
        len(dataset), batch_size=batch_size, iterations=2 * (steps + 1), seed=0, schedule=STAGES[1].max_skip
    )
    batches = iter(
        DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=num_workers,
            worker_init_fn=start_worker,
            pin_memory=device.type == 'cuda',
        )
    )
    loops = loops_of(arch, device, recompute=recompute, compiled=compiled)
    seconds = {name: [] for name in loops}
    for number in range(steps + 1):
        for name, loop in loops.items():
            times = step(loop.network, loop.optimizer, batches, device, recompute=loop.recompute, amp_dtype=amp_dtype)
            if number:  # the first step warms up
                seconds[name].append(times)
    return seconds


def loops_of(arch: str, device: torch.device, *, recompute: bool, compiled: bool) -> dict[str, Loop]:
    """Make our loop and, if the network allows it, the plain loop, with the same random weights."""
    torch.manual_seed(0)
    ours = build_network(VARIANTS[arch]).train().to(device)
    loops = {}
    if comparable(ours):
        plain = straightforward(ours)
        loops['plain'] = Loop(plain, torch.optim.Adam(plain.parameters(), lr=1e-5))
    ours.to(memory_format=torch.channels_last)
    if compiled:
        ours.compile_()
    loops['ours'] = Loop(ours, torch.optim.Adam(ours.parameters(), lr=1e-5, fused=True), recompute)
    return loops


def step(
    network: Network,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[dict],
    device: torch.device,
    *,
    recompute: bool,
    amp_dtype: str | None,
) -> list[float]:
    """Run a training step. Returns the seconds of each of ``PARTS``."""
    marks = [time.perf_counter()]

    def mark() -> None:
        synchronize(device)
        marks.append(time.perf_counter())

    batch = to_device(next(batches), device)
    mark()
    with torch.autocast(device.type, dtype=getattr(torch, amp_dtype)) if amp_dtype else nullcontext():
        logits = segment_clip(
            network, batch['rgb'], batch['masks'][:, 0].float(), batch['selector'], recompute=recompute
        )
    loss = clip_loss(logits, batch['target'][:, 1:], batch['selector'], fraction=1.0)
    mark()
    loss.backward()
    mark()
    optimizer.step()
    optimizer.zero_grad()
    mark()
    return [end - begin for begin, end in itertools.pairwise(marks)]


def print_table(seconds: dict[str, list[list[float]]]) -> None:
    """Print the medians in milliseconds as Markdown."""
    print(f'| milliseconds | {" | ".join(PARTS)} | step |\n|---|{"---:|" * 5}')
    totals = {}
    for name, steps in seconds.items():
        medians = [1000 * statistics.median(times[part] for times in steps) for part in range(len(PARTS))]
        totals[name] = 1000 * statistics.median(sum(times) for times in steps)
        print(f'| {name} | {" | ".join(f"{value:.0f}" for value in medians)} | {totals[name]:.0f} |')
    if 'plain' in totals:
        print(f'\nplain / ours: {totals["plain"] / totals["ours"]:.2f}')
