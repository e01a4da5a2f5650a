"""The measurements of ``scripts/benchmarks/speed.py``. Each takes a case and returns the rows of its table."""

import copy
import itertools
import logging
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from torch.utils.flop_counter import FlopCounterMode

from inference import InferenceConfig, InferenceCore
from inference.stream import peak_memory
from model import Network, build_network
from scripts.benchmarks.baseline import ConcatenatedMemory, comparable, straightforward
from scripts.benchmarks.harness import (
    Case,
    fill,
    filled_bank,
    half,
    load,
    peaks,
    random_image,
    random_masks,
    rates,
    stripes,
    timed,
)
from scripts.benchmarks.roofline import Work

log = logging.getLogger(__name__)

Row = dict[str, object]


def multiply_adds(call: Callable[[], object]) -> int:
    """Count the multiply-adds of convolutions and matrix products in a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


def measure_cost(case: Case) -> list[Row]:
    """Count parameters and multiply-adds of the network, without the read, whose cost depends on the memory."""
    config = load(case).config
    with torch.device('meta'):  # a new network, with its batch norm
        network = build_network(config).eval()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    image = torch.zeros(1, 3, *case.padded, device='meta')
    query = network.encode_query(image)
    rows = []
    for objects in case.objects:
        masks = torch.zeros(1, objects, *image.shape[2:], device='meta')
        readout = network.encode_memory(image, query, masks)[1]
        calls = {
            'key encoder': lambda: network.encode_query(image),
            'value encoder': lambda masks=masks: network.encode_memory(image, query, masks),
            'decoder': lambda readout=readout: network.decode(readout, query),
        }
        counts = {name: multiply_adds(call) / 1e9 for name, call in calls.items()}
        memorised = 1 / case.config.mem_every if case.config.mem_every else 0
        rows.append(
            {
                'objects': objects,
                'parameters (M)': parameters / 1e6,
                **{f'{name} (G multiply-adds)': count for name, count in counts.items()},
                'frame (G multiply-adds)': counts['key encoder']
                + counts['decoder']
                + memorised * counts['value encoder'],
            }
        )
    return rows


def measure_stages(case: Case) -> list[Row]:
    """Time key encoder, value encoder, read and decoder, and compare with the times that the machine's rates allow."""
    network, device, amp = load(case).optimize_(), case.device, case.precision == 'amp'
    rate, copied = rates(device, half(device) if amp else torch.float32)
    log.info('this machine: %.1f G multiply-adds/s (product of matrices), %.1f GB/s (copy)', rate / 1e9, copied / 1e9)
    rows = []
    with torch.inference_mode(), torch.autocast(device.type, enabled=amp, dtype=half(device)):
        image = random_image(case).contiguous(memory_format=torch.channels_last)
        query = network.encode_query(image)
        for objects, frames in itertools.product(case.objects, case.memory_frames):
            masks = random_masks(case, objects)
            bank = filled_bank(network, case, objects=objects, frames=frames)
            readout = bank.read(query.key[0])[None]
            calls = {
                'key encoder': lambda: network.encode_query(image),
                'value encoder': lambda masks=masks: network.encode_memory(image, query, masks),
                'read': lambda bank=bank: bank.read(query.key[0]),
                'decoder': lambda readout=readout: network.decode(readout, query),
            }
            times, memory = timed(calls, repeat=case.repeat, device=device), peaks(calls, device)
            for name, call in calls.items():
                with Work() as work:
                    call()
                attainable = 1000 * work.seconds(rate, copied)
                rows.append(
                    {
                        'objects': objects,
                        'memory frames': frames,
                        'stage': name,
                        'G multiply-adds': work.multiply_adds / 1e9,
                        'MB moved': work.bytes / 1e6,
                        'attainable (ms)': attainable,
                        'measured (ms)': times[name],
                        'attainable / measured': attainable / times[name],
                        **({'peak (MiB)': memory[name]} if memory else {}),
                    }
                )
    return rows


def measure_read(case: Case) -> list[Row]:
    """Compare the sparse read of a memory bank with the dense one."""
    network, device = load(case).optimize_(), case.device
    if not comparable(network):
        return []
    rows = []
    with torch.inference_mode():
        query_key = torch.randn(network.config.key_dim, *case.key_size, device=device)
        for objects, frames in itertools.product(case.objects, case.memory_frames):
            sparse = filled_bank(network, case, objects=objects, frames=frames)
            dense = fill(ConcatenatedMemory(top_k=case.config.top_k), network, case, objects=objects, frames=frames)
            calls = {
                'sparse': lambda memory=sparse: memory.read(query_key),
                'dense': lambda memory=dense: memory.read(query_key),
            }
            difference = float((calls['sparse']() - calls['dense']()).abs().max())
            times = timed(calls, repeat=case.repeat, device=device)
            rows.append(
                {
                    'objects': objects,
                    'memory frames': frames,
                    'sparse (ms)': times['sparse'],
                    'dense (ms)': times['dense'],
                    'dense / sparse': times['dense'] / times['sparse'],
                    'largest difference': difference,
                }
            )
    return rows


def measure_core(case: Case) -> list[Row]:
    """Measure milliseconds a frame in float32. The mean is over ``mem_every`` frames; one of them is memorised."""
    network, device = load(case), case.device
    if not comparable(network):
        return []
    networks = {
        'straightforward': straightforward(network),
        'exact': copy.deepcopy(network).optimize_(exact=True),
        'ours': network.optimize_(),
    }
    rate, _ = rates(device, torch.float32)
    period = case.config.mem_every or 1  # with only the first frame in the memory, all later frames cost the same
    rows = []
    for objects, frames in itertools.product(case.objects, case.memory_frames):
        image, mask = stripes(case.size, objects)
        cores = cores_of(networks, case, num_frames=period * (frames + case.repeat + 2))
        for core in cores.values():
            core.step(image, mask)
            fill(core.memory, network, case, objects=objects, frames=frames - 1)
        probs = {}

        def run(name: str, cores=cores, probs=probs, image=image) -> None:
            for _ in range(period):
                probs[name] = cores[name].step(image)

        times = timed({name: lambda name=name: run(name) for name in cores}, repeat=case.repeat, device=device)
        rows.append(
            {
                'objects': objects,
                'memory frames': frames,
                **{f'{name} (ms)': value / period for name, value in times.items()},
                'straightforward / ours': times['straightforward'] / times['ours'],
                'exact / ours': times['exact'] / times['ours'],
                'largest difference': float((probs['ours'] - probs['straightforward']).abs().max()),
                'straightforward encoders / matrix rate': encoder_rate(networks['straightforward'], objects, case)
                / rate,
            }
        )
    return rows


def cores_of(networks: dict[str, Network], case: Case, *, num_frames: int) -> dict[str, InferenceCore]:
    """Make a core for each network; the straightforward one gets the straightforward memory."""
    config = InferenceConfig(top_k=case.config.top_k, mem_every=case.config.mem_every)
    cores = {name: InferenceCore(network, config, num_frames=num_frames) for name, network in networks.items()}
    cores['straightforward'].memory = ConcatenatedMemory(top_k=config.top_k)
    return cores


def encoder_rate(network: Network, objects: int, case: Case) -> float:
    """Measure the multiply-adds a second of both encoders together."""
    with torch.inference_mode():
        image, masks = random_image(case), random_masks(case, objects)

        def encode() -> None:
            network.encode_memory(image, network.encode_query(image), masks)

        [milliseconds] = timed({'': encode}, repeat=case.repeat, device=case.device).values()
        return 1000 * multiply_adds(encode) / milliseconds


def measure_growth(case: Case) -> list[Row]:
    """Measure a frame that is not memorised: one object with all memory lengths, more objects with the shortest."""
    network = load(case).optimize_()
    rows = []
    pairs = [(1, frames) for frames in case.memory_frames] + [
        (objects, min(case.memory_frames)) for objects in case.objects if objects > 1
    ]
    with torch.inference_mode():
        image = random_image(case)
        query = network.encode_query(image)
        for objects, frames in pairs:
            bank = filled_bank(network, case, objects=objects, frames=frames)

            def frame(bank=bank) -> None:
                query = network.encode_query(image)
                network.decode(bank.read(query.key[0])[None], query)

            calls = {'frame': frame, 'read': lambda bank=bank: bank.read(query.key[0])}
            times = timed(calls, repeat=case.repeat, device=case.device)
            rows.append(
                {
                    'objects': objects,
                    'memory frames': frames,
                    **{f'{name} (ms)': value for name, value in times.items()},
                    'bank (MiB)': bank.nbytes / 2**20,
                }
            )
    return rows


def measure_video(case: Case) -> list[Row]:
    """Measure the core over clips, each in its own process, since the peak memory of a process cannot be reset."""
    rows = []
    for objects, frames in itertools.product(case.objects, case.video_frames):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
            rows.append(pool.submit(one_video, case, objects, frames).result())
    return rows


def one_video(case: Case, objects: int, frames: int) -> Row:
    """Run the core over a clip. The peak memory is that of this process."""
    network, device = load(case).optimize_(), case.device
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    core = InferenceCore(network, case.config, num_frames=frames)
    image, mask = stripes(case.size, objects)
    images = [image, 255 - image]  # they alternate, so that consecutive frames differ
    start = time.perf_counter()
    for t in range(frames):
        labels = core.to_labels(core.step(images[t % 2], mask if t == 0 else None, last=t == frames - 1))
        labels.cpu()
    seconds = time.perf_counter() - start
    peak = peak_memory(device)
    bank = core.memory.nbytes
    return {
        'objects': objects,
        'frames': frames,
        'memory frames': len(core.memory),
        'FPS': frames / seconds,
        'peak (MiB)': peak / 2**20,
        'bank (MiB)': bank / 2**20,
        'peak - bank (MiB)': (peak - bank) / 2**20,
    }
