"""Where the time of a training step goes: waiting for data, forward, backward, optimizer.

    python scripts/benchmark_training.py --static_root ../static --crop_size 192 --batch_size 4

Each step is taken in turns by this repository's loop (weights in channels_last, fused Adam, what objects share is
convolved once) and by the plain one (the formulation of scripts/baseline.py, contiguous weights, Adam as it comes).
"""

import argparse
import itertools
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import HelpFormatter, positive, run_main

PARTS = ('data', 'forward', 'backward', 'optimizer')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0], formatter_class=HelpFormatter)
    add = parser.add_argument
    add('--static_root', required=True, help='image and mask pairs: clips of moving objects are composed of them')
    add('--arch', default='stcn', help='variant, with random weights')
    add('--crop_size', type=positive, default=384, help='side of a training frame')
    add('--batch_size', type=positive, default=4, help='samples')
    add('--num_workers', type=int, default=1, help='that load data')
    add('--steps', type=positive, default=5, help='of each; the median counts')
    add('--amp_dtype', choices=('float16', 'bfloat16'), help='mixed precision of this type')
    add('--recompute', action='store_true', help='as train.py --recompute, for ours')
    add('--compile', action='store_true', help='as train.py --compile, for ours')
    add('--device', help='e.g. cuda:1 or cpu (default: the GPU, if there is one)')
    args = parser.parse_args()

    import torch
    from torch.utils.data import DataLoader

    from dataset.sampling import AddressSampler
    from dataset.static import find_pairs
    from dataset.synthetic import SyntheticDataset
    from model import VARIANTS, build_network
    from scripts.baseline import comparable, straightforward
    from training.run import start_worker
    from training.stages import STAGES
    from util.distributed import choose_device

    if args.arch not in VARIANTS:
        parser.error(f'--arch: expected one of {", ".join(VARIANTS)}, found {args.arch}')
    device = choose_device(args.device)
    dataset = SyntheticDataset(find_pairs(args.static_root), size=args.crop_size)
    sampler = AddressSampler(
        len(dataset), batch_size=args.batch_size, iterations=2 * (args.steps + 1), seed=0, schedule=STAGES[1].max_skip
    )
    batches = iter(
        DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=args.num_workers,
            worker_init_fn=start_worker,
            pin_memory=device.type == 'cuda',
        )
    )
    torch.manual_seed(0)
    ours = build_network(VARIANTS[args.arch]).train().to(device)
    loops = {}
    if comparable(ours):
        plain = straightforward(ours)
        loops['plain'] = plain, torch.optim.Adam(plain.parameters(), lr=1e-5), False
    ours.to(memory_format=torch.channels_last)
    if args.compile:
        ours.compiled()
    loops['ours'] = ours, torch.optim.Adam(ours.parameters(), lr=1e-5, fused=True), args.recompute
    seconds = {name: [] for name in loops}
    for number in range(args.steps + 1):
        for name, (network, optimizer, recompute) in loops.items():
            times = step(network, optimizer, batches, device, recompute=recompute, amp_dtype=args.amp_dtype)
            if number:  # the first step warms up
                seconds[name].append(times)
    print(f'| milliseconds | {" | ".join(PARTS)} | step |\n|---|{"---:|" * 5}')
    totals = {}
    for name, steps in seconds.items():
        medians = [1000 * statistics.median(times[part] for times in steps) for part in range(len(PARTS))]
        totals[name] = 1000 * statistics.median(sum(times) for times in steps)
        print(f'| {name} | {" | ".join(f"{value:.0f}" for value in medians)} | {totals[name]:.0f} |')
    if 'plain' in totals:
        print(f'\nplain / ours: {totals["plain"] / totals["ours"]:.2f}')
    return 0


def step(network, optimizer, batches, device, *, recompute: bool, amp_dtype: str | None) -> list[float]:
    """Seconds of each of ``PARTS``."""
    import torch

    from model.clip import segment_clip
    from model.losses import clip_loss
    from training.loop import to_device

    marks = [time.perf_counter()]

    def mark() -> None:
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
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


if __name__ == '__main__':
    run_main(main)
