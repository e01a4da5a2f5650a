"""Speed and memory of the network and the core, as ratios taken in one run.

    python scripts/benchmark.py --objects 1 3 --memory_frames 20
    python scripts/benchmark.py --measure video --size 240x432 --video_frames 60 300
    python scripts/benchmark.py --measure cost stages --arch stcn stcn_light --size 480x854 240x432

cost    parameters, and multiply-adds of key encoder, value encoder and decoder, and of a frame
stages  milliseconds (on a GPU also peak memory) of key encoder, value encoder, memory read and decoder
read    the sparse read against the dense formulation: softmax over the top k scattered into the
        whole affinity matrix, times all values
video   the whole core over a clip: FPS, and peak memory with and without the memory bank
"""
import argparse
import itertools
import json
import logging
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.cli import HelpFormatter, positive, run_main

log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add('--measure', nargs='+', choices=('cost', 'stages', 'read', 'video'),
        default=['cost', 'stages', 'read', 'video'],
        help='what to measure')
    add('--arch', nargs='+', default=['stcn'], help='variants, with random weights')
    add('--model', help='checkpoint in place of --arch')
    add('--size', type=size, nargs='+', default=[(480, 854)], help='HEIGHTxWIDTH of a frame; 480x854 by default')
    add('--objects', type=positive, nargs='+', default=[1, 3], help='numbers of objects')
    add('--memory_frames', type=positive, nargs='+', default=[20], help='lengths of the memory')
    add('--video_frames', type=positive, nargs='+', default=[20], help='lengths of the clip')
    add('--top', type=positive, default=20, help='memory positions that a query position reads')
    add('--mem_every', type=positive, default=5, help='every n-th frame of the clip goes into the memory')
    add('--precision', choices=('float32', 'amp'), default='float32', help='of encoders and decoder')
    add('--device', help='e.g. cuda:1 or cpu (default: the GPU, if there is one)')
    add('--repeat', type=positive, default=5, help='measurements of each thing, taken in turns; the median counts')
    add('--json', help='file for the numbers')
    args = parser.parse_args()

    import torch

    from util.files import atomic_path, check_writable
    if args.json:
        check_writable(args.json)
    networks = [args.model] if args.model else args.arch
    result = {'machine': machine(args), 'precision': args.precision}
    for name in args.measure:
        result[name] = []
        for frame, network in itertools.product(args.size, networks):
            rows = MEASURES[name](argparse.Namespace(**{**vars(args), 'network': network, 'size': frame}))
            result[name] += [{'network': network, 'size': '{} x {}'.format(*frame), **row} for row in rows]
    print(f'{result["machine"]}, {args.precision}, torch {torch.__version__}')
    for name in args.measure:
        print_table(name, result[name])
    if args.json:
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + '\n')
    return 0


def size(text: str) -> tuple[int, int]:
    height, _, width = text.partition('x')
    return positive(height), positive(width)


def machine(args: argparse.Namespace) -> str:
    import torch
    if device_of(args).type == 'cuda':
        return torch.cuda.get_device_name(device_of(args))
    return f'{platform.machine()} CPU, {torch.get_num_threads()} threads'


def device_of(args: argparse.Namespace):
    from util.distributed import choose_device
    return choose_device(args.device)


def load(args: argparse.Namespace):
    """The network to measure, on its device."""
    import torch

    from inference import load_model
    from model import VARIANTS, build_network
    if args.model:
        return load_model(args.model, device=device_of(args))
    if args.network not in VARIANTS:
        raise SystemExit(f'error: --arch: expected some of {", ".join(VARIANTS)}, found {args.network!r}')
    torch.manual_seed(0)
    return build_network(VARIANTS[args.network]).eval().to(device_of(args)).optimized()


def timed(calls: dict[str, Callable[[], object]], *, repeat: int, device) -> dict[str, float]:
    """Median milliseconds of each call. They take turns, so that a disturbance of the machine meets all of them."""
    import torch
    seconds = {name: [] for name in calls}
    for turn in range(repeat + 1):
        for name, call in calls.items():
            if device.type == 'cuda':
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            call()
            if device.type == 'cuda':
                torch.cuda.synchronize(device)
            if turn:                                    # the first turn warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def peaks(calls: dict[str, Callable[[], object]], device) -> dict[str, float]:
    """MiB that each call allocates on top of what is there; of a GPU only, a CPU does not count them."""
    import torch
    if device.type != 'cuda':
        return {}
    found = {}
    for name, call in calls.items():
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        found[name] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return found


def random_memory(network, query_key, *, objects: int, frames: int):
    """Keys ``[T, 1 or K, Ck, h, w]`` and values ``[T, K, Cv, h, w]`` for queries of this shape."""
    import torch
    generator = torch.Generator(query_key.device).manual_seed(0)
    random = {'generator': generator, 'device': query_key.device}
    return (torch.randn(frames, 1 if network.shared_keys else objects, *query_key.shape, **random),
            torch.randn(frames, objects, network.config.value_dim, *query_key.shape[1:], **random))


def filled_bank(network, keys, values, *, top_k: int):
    """A memory bank with these frames."""
    from inference.memory_bank import MemoryBank
    bank = MemoryBank(shared_keys=network.shared_keys, metric=network.similarity, top_k=top_k, capacity=len(keys))
    for key, value in zip(keys, values, strict=True):
        bank.add(key, value)
    return bank


def padded(height: int, width: int) -> tuple[int, int]:
    return height + -height % 16, width + -width % 16


def measure_cost(args: argparse.Namespace) -> list[dict]:
    """Of the convolutions; the read is not among them, it depends on the memory."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from model import build_network
    config = load(args).config
    with torch.device('meta'):      # anew, with its batch norm
        network = build_network(config).eval()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    image = torch.zeros(1, 3, *padded(*args.size), device='meta')
    query = network.encode_query(image)
    rows = []
    for objects in args.objects:
        masks = torch.zeros(1, objects, *image.shape[2:], device='meta')
        readout = network.encode_memory(image, query, masks)[1]
        calls = {'key encoder': lambda: network.encode_query(image),
                 'value encoder': lambda masks=masks: network.encode_memory(image, query, masks),
                 'decoder': lambda readout=readout: network.decode(readout, query)}
        counts = {}
        for name, call in calls.items():
            with FlopCounterMode(display=False) as counter:
                call()
            counts[name] = counter.get_total_flops() / 2e9
        frame = counts['key encoder'] + counts['decoder'] + counts['value encoder'] / args.mem_every
        rows.append({'objects': objects, 'parameters (M)': parameters / 1e6,
                     **{f'{name} (G multiply-adds)': count for name, count in counts.items()},
                     'frame (G multiply-adds)': frame})
    return rows


def measure_stages(args: argparse.Namespace) -> list[dict]:
    import torch
    network, device = load(args), device_of(args)
    rows = []
    with torch.inference_mode(), torch.autocast(
            device.type, enabled=args.precision == 'amp',
            dtype=torch.float16 if device.type == 'cuda' else torch.bfloat16):
        image = torch.randn(1, 3, *padded(*args.size), device=device)
        query = network.encode_query(image)
        for objects in args.objects:
            masks = torch.rand(1, objects, *image.shape[2:], device=device) / objects
            for frames in args.memory_frames:
                keys, values = random_memory(network, query.key[0], objects=objects, frames=frames)
                bank = filled_bank(network, keys, values, top_k=args.top)
                readout = bank.read(query.key[0])[None]
                calls = {'key encoder': lambda: network.encode_query(image),
                         'value encoder': lambda masks=masks: network.encode_memory(image, query, masks),
                         'read': lambda bank=bank: bank.read(query.key[0]),
                         'decoder': lambda readout=readout: network.decode(readout, query)}
                times = timed(calls, repeat=args.repeat, device=device)
                total = sum(times.values()) - times['value encoder'] * (1 - 1 / args.mem_every)
                rows.append({'objects': objects, 'memory frames': frames,
                             **{f'{name} (ms)': value for name, value in times.items()}, 'FPS': 1000 / total,
                             **{f'{name} (peak MiB)': value for name, value in peaks(calls, device).items()}})
    return rows


def dense_read(keys, values, query_key, *, top_k: int):
    """The top-k read as first published: a whole affinity matrix, zero but for the top k, times all values.

    Positions are rows, which is its fastest arrangement: ``keys [N, Ck], values [N, K * Cv], query_key [Q, Ck]
    -> [Q, K * Cv]``.
    """
    import torch
    similarity = (2 * query_key @ keys.T - keys.square().sum(dim=1)) / query_key.shape[1] ** 0.5
    best, indices = similarity.topk(top_k, dim=1)
    affinity = torch.zeros_like(similarity).scatter_(1, indices, best.softmax(dim=1))
    return affinity @ values


def measure_read(args: argparse.Namespace) -> list[dict]:
    import torch
    network, device = load(args), device_of(args)
    h, w = (side // 16 for side in padded(*args.size))
    rows = []
    with torch.inference_mode():
        query_key = torch.randn(network.config.key_dim, h, w, device=device)
        for objects in args.objects:
            for frames in args.memory_frames:
                keys, values = random_memory(network, query_key, objects=objects, frames=frames)
                bank = filled_bank(network, keys, values, top_k=args.top)
                keys = keys[:, 0].flatten(2).transpose(1, 2).flatten(0, 1)
                values = values.flatten(3).permute(0, 3, 1, 2).flatten(0, 1).flatten(1)
                queries = query_key.flatten(1).T.contiguous()
                calls = {'sparse': lambda bank=bank: bank.read(query_key),
                         'dense': lambda k=keys, v=values, q=queries: dense_read(k, v, q, top_k=args.top)}
                difference = float((calls['sparse']().flatten(0, 1).flatten(1).T - calls['dense']()).abs().max())
                times = timed(calls, repeat=args.repeat, device=device)
                rows.append({'objects': objects, 'memory frames': frames, 'sparse (ms)': times['sparse'],
                             'dense (ms)': times['dense'], 'dense / sparse': times['dense'] / times['sparse'],
                             'largest difference': difference})
    return rows


def measure_videos(args: argparse.Namespace) -> list[dict]:
    """In a process of its own each, for the peak memory of a process cannot be reset."""
    rows = []
    for objects in args.objects:
        for frames in args.video_frames:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
                rows.append(pool.submit(measure_video, args, objects, frames).result())
    return rows


def measure_video(args: argparse.Namespace, objects: int, frames: int) -> dict:
    import torch

    from inference.core import InferenceCore
    from inference.run import peak_memory
    network, device = load(args), device_of(args)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    core = InferenceCore(network, top_k=args.top, mem_every=args.mem_every, amp=args.precision == 'amp',
                         num_frames=frames)
    height, width = args.size
    # Stripes, so that every object has pixels; two images in turn, so that not every frame is like the last.
    mask = (torch.arange(width) * (objects + 1) // width).to(torch.uint8).expand(height, width)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator) for _ in range(2)]
    start = time.perf_counter()
    for t in range(frames):
        labels = core.to_labels(core.step(images[t % 2], mask if t == 0 else None, last=t == frames - 1))
        labels.cpu()
    seconds = time.perf_counter() - start
    peak = peak_memory(device)
    bank = core.memory.nbytes
    return {'objects': objects, 'frames': frames, 'memory frames': len(core.memory), 'FPS': frames / seconds,
            'peak (MiB)': peak / 2**20, 'bank (MiB)': bank / 2**20, 'peak - bank (MiB)': (peak - bank) / 2**20}


def print_table(name: str, rows: list[dict]) -> None:
    """As Markdown."""
    print(f'\n{name}\n\n| {" | ".join(rows[0])} |\n|{"---:|" * len(rows[0])}')
    for row in rows:
        print('| ' + ' | '.join(f'{value:.3g}' if isinstance(value, float) and value < 100
                                else f'{value:.0f}' if isinstance(value, float) else str(value)
                                for value in row.values()) + ' |')


MEASURES = {'cost': measure_cost, 'stages': measure_stages, 'read': measure_read, 'video': measure_videos}

if __name__ == '__main__':
    run_main(main)
