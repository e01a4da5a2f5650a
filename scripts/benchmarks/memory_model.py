"""Tables of the memory that inference and training allocate, as a model predicts it and as a machine shows it."""

import dataclasses
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from inference import InferenceCore
from inference.stream import peak_memory
from model import VARIANTS, Network, build_network
from model.clip import segment_clip
from model.image import STRIDE
from model.losses import clip_loss
from scripts.benchmarks.harness import half, padded
from scripts.benchmarks.roofline import Allocations

# Cases of inference: height, width, objects, memory frames.
PAPER = [(480, 854, 1, 200), (480, 854, 5, 200), (480, 854, 10, 200), (480, 854, 5, 2000)]
LIMIT = 11 * 10**9
CHECKED = [(240, 432, 1, 20), (240, 432, 5, 100), (480, 854, 3, 40)]
# Cases of training: stage, samples on each GPU.
TRAINING = [(0, 8), (3, 4)]
TRAINING_MODES = [(False, False), (True, False), (True, True)]  # whether AMP and --recompute are used
GIB = 2**30


def inference_peak(arch: str, height: int, width: int, objects: int, frames: int, *, amp: bool = False) -> int:
    """Predict the peak bytes when a frame is segmented and memorised as the last of ``frames`` memory frames."""
    with torch.inference_mode(), FakeTensorMode(), Allocations() as allocations:
        network = build_network(VARIANTS[arch]).eval()
        memorised_frame(network, height, width, objects, frames, amp=amp)
    return allocations.peak


def memorised_frame(
    network: Network, height: int, width: int, objects: int, frames: int, *, amp: bool = False
) -> None:
    """Segment and memorise a frame as a core does. The memory then holds ``frames`` frames."""
    device = next(network.parameters()).device
    height, width = padded(height, width)
    core = InferenceCore(network, num_frames=5 * frames - 5, amp=amp)
    h, w, config = height // STRIDE, width // STRIDE, network.config
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
    """Predict the peak bytes of a training step in one process: weights, gradients, Adam's moments and activations."""
    with FakeTensorMode(), Allocations() as allocations:
        training_steps(
            stage, samples, arch=arch, crop_size=crop_size, amp=amp, recompute=recompute, device=torch.device('cpu')
        )
    return allocations.peak


def training_steps(
    stage: int, samples: int, *, arch: str, crop_size: int, amp: bool, recompute: bool, device: torch.device
) -> None:
    """Run two training steps, since the first one only creates Adam's moments at its end."""
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


def inference_step(arch: str, case: tuple[int, int, int, int], *, amp: bool, device: torch.device) -> None:
    """Do the work whose memory :func:`inference_peak` predicts."""
    with torch.inference_mode():
        memorised_frame(build_network(VARIANTS[arch]).eval().to(device), *case, amp=amp)


def cpu_peak(arch: str, case: tuple[int, int, int, int]) -> int:
    """Measure by how many bytes the peak of this process rises on a CPU when it runs :func:`inference_step`."""
    device = torch.device('cpu')
    torch.set_num_threads(1)
    torch.zeros(64, 64) @ torch.zeros(64, 64)  # this loads libraries
    before = peak_memory(device)
    inference_step(arch, case, amp=False, device=device)
    return peak_memory(device) - before


def gpu_peak(call: Callable[[], object], device: torch.device) -> int:
    """Measure the peak bytes that a call allocates. Raises ``torch.OutOfMemoryError`` beyond LIMIT."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT / total), device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return torch.cuda.max_memory_allocated(device)


def tabulate(arch: str) -> None:
    """Print the predicted memory of inference and training."""
    print('| inference | objects | memory frames | float32 (GiB) | --amp (GiB) |\n|---|---:|---:|---:|---:|')
    for height, width, objects, frames in PAPER:
        peaks = [inference_peak(arch, height, width, objects, frames, amp=amp) / GIB for amp in (False, True)]
        print(f'| {height} x {width} | {objects} | {frames} | {peaks[0]:.2f} | {peaks[1]:.2f} |', flush=True)
    print(
        '\n| training, 384 x 384 | samples on each GPU | --no_amp (GiB) | AMP (GiB) | AMP, --recompute (GiB) |\n'
        '|---|---:|---:|---:|---:|'
    )
    for stage, samples in TRAINING:
        peaks = [
            training_peak(stage, samples, arch=arch, amp=amp, recompute=recompute) / GIB
            for amp, recompute in TRAINING_MODES
        ]
        print(f'| stage {stage} | {samples} | {peaks[0]:.2f} | {peaks[1]:.2f} | {peaks[2]:.2f} |', flush=True)


def check_cpu(arch: str) -> None:
    """Print predicted and measured memory for a few cases of inference, each measured in its own process."""
    print(
        '| size | objects | memory frames | model (GiB) | observed (GiB) | observed / model |\n'
        '|---:|---:|---:|---:|---:|---:|'
    )
    for case in CHECKED:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
            observed = pool.submit(cpu_peak, arch, case).result()
        expected = inference_peak(arch, *case)
        print(
            f'| {case[0]} x {case[1]} | {case[2]} | {case[3]} | {expected / GIB:.2f} | {observed / GIB:.2f} '
            f'| {observed / expected:.2f} |',
            flush=True,
        )


def check_gpu(arch: str, device: torch.device) -> None:
    """Print predicted and measured memory for every row of the tables that should fit into LIMIT."""
    print('| on this GPU | model (GiB) | observed (GiB) | observed / model |\n|---|---:|---:|---:|')
    for name, expected, call in runs(arch, device):
        if expected < LIMIT:
            observed = gpu_peak(call, device)
            print(f'| {name} | {expected / GIB:.2f} | {observed / GIB:.2f} | {observed / expected:.2f} |', flush=True)


def runs(arch: str, device: torch.device) -> Iterator[tuple[str, int, Callable[[], None]]]:
    """For every row of the tables, yield its name, its predicted bytes, and a function that runs it on this device."""
    for case in PAPER:
        for amp in (False, True):
            yield (
                f'{case[0]} x {case[1]}, {case[2]} objects, {case[3]} memory frames{", AMP" if amp else ""}',
                inference_peak(arch, *case, amp=amp),
                partial(inference_step, arch, case, amp=amp, device=device),
            )
    for stage, samples in TRAINING:
        for amp, recompute in TRAINING_MODES:
            how = {'arch': arch, 'crop_size': 384, 'amp': amp, 'recompute': recompute}
            yield (
                f'stage {stage}, {samples} samples{", AMP" if amp else ""}{", --recompute" if recompute else ""}',
                training_peak(stage, samples, **how),
                partial(training_steps, stage, samples, device=device, **how),
            )
