"""How much memory inference and training take, from what each operation allocates: no GPU and no time needed.

    python scripts/benchmark_memory.py                      # what fits into 11 GB
    python scripts/benchmark_memory.py --check              # the model against what is seen: on a CPU the process's
                                                            # peak, on a GPU all of the table in a process that may
                                                            # take 11 GB

The model runs the network on fake tensors, which have shapes and no data, and adds up what is alive. It knows nothing
of what libraries allocate besides (workspaces of cuDNN, packed weights of oneDNN) nor of fragmentation.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import run_main

# Of inference: height, width, objects, memory frames.
PAPER = [(480, 854, 1, 200), (480, 854, 5, 200), (480, 854, 10, 200), (480, 854, 5, 2000)]
LIMIT = 11 * 10**9
CHECKED = [(240, 432, 1, 20), (240, 432, 5, 100), (480, 854, 3, 40)]
# Of training: stage, samples on each GPU.
TRAINING = [(0, 8), (3, 4)]
TRAINING_MODES = [(False, False), (True, False), (True, True)]  # AMP, --recompute


def inference_peak(arch: str, height: int, width: int, objects: int, frames: int, *, amp: bool = False) -> int:
    """Bytes at the peak of a frame that is segmented and goes into a memory of ``frames`` frames."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from model import VARIANTS, build_network
    from scripts.roofline import Allocations

    with torch.inference_mode(), FakeTensorMode(), Allocations() as allocations:
        network = build_network(VARIANTS[arch]).eval()
        memorised_frame(network, height, width, objects, frames, amp=amp)
    return allocations.peak


def memorised_frame(network, height: int, width: int, objects: int, frames: int, *, amp: bool = False) -> None:
    """What a core does to a frame, with a memory that holds ``frames`` frames after it."""
    import torch

    from inference.core import InferenceCore
    from scripts.benchmark import half, padded

    device = next(network.parameters()).device
    height, width = padded(height, width)
    core = InferenceCore(network, num_frames=5 * frames - 5, amp=amp)
    h, w, config = height // 16, width // 16, network.config
    dtype = half(device) if amp else torch.float32
    for _ in range(frames - 1):
        core.memory.add(
            torch.zeros(1 if network.shared_keys else objects, config.key_dim, h, w, device=device),
            torch.zeros(objects, config.value_dim, h, w, device=device, dtype=dtype),
        )
    with torch.autocast(device.type, enabled=amp, dtype=half(device)):
        image = torch.zeros(1, 3, height, width, device=device)
        query = network.encode_query(image)
        prob = core._segment(query)
        key, value = network.encode_memory(image, query, prob[None, 1:])
        core.memory.add(key[0], value[0])


def training_peak(
    stage: int, samples: int, *, arch: str = 'stcn', crop_size: int = 384, amp: bool = True, recompute: bool = False
) -> int:
    """Bytes at the peak of a training step (weights, gradients, Adam's moments and activations) of one process."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from scripts.roofline import Allocations

    with FakeTensorMode(), Allocations() as allocations:
        training_steps(
            stage, samples, arch=arch, crop_size=crop_size, amp=amp, recompute=recompute, device=torch.device('cpu')
        )
    return allocations.peak


def training_steps(stage: int, samples: int, *, arch: str, crop_size: int, amp: bool, recompute: bool, device) -> None:
    """Two steps: Adam's moments come with the first one."""
    import dataclasses

    import torch

    from model import VARIANTS, build_network
    from model.clip import segment_clip
    from model.losses import clip_loss
    from scripts.benchmark import half

    objects = 1 if stage == 0 else 2
    with device:
        network = build_network(dataclasses.replace(VARIANTS[arch], single_object=stage == 0)).train()
        optimizer = torch.optim.Adam(network.parameters(), fused=True)
        rgb = torch.zeros(samples, 3, 3, crop_size, crop_size)
        masks, selector = torch.zeros(samples, objects, crop_size, crop_size), torch.ones(samples, objects)
        target = torch.zeros(samples, 2, crop_size, crop_size, dtype=torch.long)
        for _ in range(2):
            with torch.autocast(device.type, enabled=amp, dtype=half(device)):
                logits = segment_clip(network, rgb, masks, selector, recompute=recompute)
            clip_loss(logits, target, selector, fraction=1.0).backward()
            optimizer.step()
            optimizer.zero_grad()


def observed_peak(arch: str, height: int, width: int, objects: int, frames: int) -> int:
    """Bytes by which the peak of a CPU process rises when it does what :func:`inference_peak` models."""
    import torch

    from inference.stream import peak_memory
    from model import VARIANTS, build_network

    torch.set_num_threads(1)
    torch.zeros(64, 64) @ torch.zeros(64, 64)  # libraries load
    before = peak_memory(torch.device('cpu'))
    with torch.inference_mode():
        memorised_frame(build_network(VARIANTS[arch]).eval(), height, width, objects, frames)
    return peak_memory(torch.device('cpu')) - before


def gpu_peak(call: Callable[[], object], device) -> int:
    """Bytes that a call allocates at its peak. Raises ``torch.OutOfMemoryError`` beyond LIMIT."""
    import torch

    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT / total), device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return torch.cuda.max_memory_allocated(device)


def check_gpu(arch: str, device) -> None:
    """Every row of the table that the model says fits, and what it takes."""
    import torch

    from model import VARIANTS, build_network

    def inference(case: tuple[int, int, int, int], amp: bool) -> None:
        with torch.inference_mode():
            memorised_frame(build_network(VARIANTS[arch]).eval().to(device), *case, amp=amp)

    runs = [
        (
            f'{case[0]} x {case[1]}, {case[2]} objects, {case[3]} memory frames{", AMP" if amp else ""}',
            inference_peak(arch, *case, amp=amp),
            partial(inference, case, amp),
        )
        for case in PAPER
        for amp in (False, True)
    ]
    for stage, samples in TRAINING:
        for amp, recompute in TRAINING_MODES:
            how = {'arch': arch, 'crop_size': 384, 'amp': amp, 'recompute': recompute}
            name = f'stage {stage}, {samples} samples{", AMP" if amp else ""}{", --recompute" if recompute else ""}'
            runs.append(
                (
                    name,
                    training_peak(stage, samples, **how),
                    partial(training_steps, stage, samples, device=device, **how),
                )
            )
    print('| on this GPU | model (GiB) | observed (GiB) | observed / model |\n|---|---:|---:|---:|')
    for name, model, call in runs:
        if model < LIMIT:
            observed = gpu_peak(call, device)
            print(f'| {name} | {model / 2**30:.2f} | {observed / 2**30:.2f} | {observed / model:.2f} |', flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--arch', default='stcn', help='variant (default: stcn)')
    add('--check', action='store_true', help='compare the model with what is seen (default: what fits into 11 GB)')
    add('--device', help='for --check, e.g. cuda:1 or cpu (default: the GPU, if there is one)')
    args = parser.parse_args()
    gib = 2**30
    if args.check:
        from util.distributed import choose_device

        device = choose_device(args.device)
        if device.type == 'cuda':
            check_gpu(args.arch, device)
            return 0
        print(
            '| size | objects | memory frames | model (GiB) | observed (GiB) | observed / model |\n'
            '|---:|---:|---:|---:|---:|---:|'
        )
        for case in CHECKED:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
                observed = pool.submit(observed_peak, args.arch, *case).result()
            model = inference_peak(args.arch, *case)
            print(
                f'| {case[0]} x {case[1]} | {case[2]} | {case[3]} | {model / gib:.2f} | {observed / gib:.2f} '
                f'| {observed / model:.2f} |',
                flush=True,
            )
        return 0
    print('| inference | objects | memory frames | float32 (GiB) | --amp (GiB) |\n|---|---:|---:|---:|---:|')
    for height, width, objects, frames in PAPER:
        peaks = [inference_peak(args.arch, height, width, objects, frames, amp=amp) / gib for amp in (False, True)]
        print(f'| {height} x {width} | {objects} | {frames} | {peaks[0]:.2f} | {peaks[1]:.2f} |', flush=True)
    print(
        '\n| training, 384 x 384 | samples on each GPU | --no_amp (GiB) | AMP (GiB) | AMP, --recompute (GiB) |\n'
        '|---|---:|---:|---:|---:|'
    )
    for stage, samples in TRAINING:
        peaks = [
            training_peak(stage, samples, arch=args.arch, amp=amp, recompute=recompute) / gib
            for amp, recompute in TRAINING_MODES
        ]
        print(f'| stage {stage} | {samples} | {peaks[0]:.2f} | {peaks[1]:.2f} | {peaks[2]:.2f} |', flush=True)
    return 0


if __name__ == '__main__':
    run_main(main)
