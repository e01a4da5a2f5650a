"""Speed and memory of the network and the core, as ratios taken in one run.

    python scripts/benchmark.py --objects 1 3 --memory_frames 20
    python scripts/benchmark.py --measure video --size 240x432 --video_frames 60 300
    python scripts/benchmark.py --measure cost video --arch stcn stcn_light --size 480x854 240x432
    python scripts/benchmark.py --measure growth --size 240x432 --memory_frames 1 20 200 2000 --plot growth.png

cost    parameters, and multiply-adds of key encoder, value encoder and decoder, and of a frame
stages  key encoder, value encoder, memory read and decoder: multiply-adds, bytes, and the time that they would take at
        the machine's own rates of a matrix product and a copy, beside the time that they take
read    the sparse read against the dense one of the straightforward formulation (scripts/baseline.py)
core    the whole core with a filled memory against the straightforward formulation, in float32
video   the whole core over a clip: FPS, and peak memory with and without the memory bank
growth  milliseconds of a frame, and bytes of the memory, over memory frames and objects
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
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.flags import add_inference_flag, inference_config, parse_flags
from util.cli import HelpFormatter, positive, run_main

log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add(
        '--measure',
        nargs='+',
        choices=tuple(MEASURES),
        default=['cost', 'stages', 'read', 'core', 'video'],
        help='what to measure',
    )
    add('--arch', nargs='+', default=['stcn'], help='variants, with random weights')
    add('--model', help='checkpoint in place of --arch')
    add('--size', type=size, nargs='+', default=[(480, 854)], help='HEIGHTxWIDTH of a frame; 480x854 by default')
    add('--objects', type=positive, nargs='+', default=[1, 3], help='numbers of objects')
    add('--memory_frames', type=positive, nargs='+', default=[20], help='lengths of the memory')
    add('--video_frames', type=positive, nargs='+', default=[20], help='lengths of the clip')
    for name in ('top', 'include_last', 'mem_every', 'max_memory_frames'):
        add_inference_flag(parser, name)
    add(
        '--precision',
        choices=('float32', 'tf32', 'amp'),
        default='float32',
        help="of encoders and decoder; tf32: a GPU's own rounding of float32 products",
    )
    add('--device', help='e.g. cuda:1 or cpu (default: the GPU, if there is one)')
    add('--repeat', type=positive, default=5, help='measurements of each thing, taken in turns; the median counts')
    add('--json', help='file for the numbers')
    add('--plot', help='PNG file for a plot of growth')
    args = parse_flags(parser)
    args.config = replace(inference_config(args), amp=args.precision == 'amp')

    import torch

    from scripts.plots import import_pyplot
    from util.files import atomic_path, check_writable

    if args.json:
        check_writable(args.json)
    if args.plot:
        check_writable(args.plot)
        import_pyplot()
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
    if args.plot and 'growth' in result:
        plot_growth(result['growth'], args.plot)
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
    """The network to measure, as it is trained, on its device."""
    import torch

    from model import VARIANTS, build_network, load_network

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = args.precision == 'tf32'
    if args.model:
        return load_network(args.model, device=device_of(args))
    if args.network not in VARIANTS:
        raise SystemExit(f'error: --arch: expected some of {", ".join(VARIANTS)}, found {args.network!r}')
    torch.manual_seed(0)
    return build_network(VARIANTS[args.network]).eval().to(device_of(args))


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
            if turn:  # the first turn warms up
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


def fill(memory, network, size: tuple[int, int], *, objects: int, frames: int, device):
    """The memory with random frames of this size added, one after the other: together they are large."""
    import torch

    h, w = (side // 16 for side in padded(*size))
    random = {'generator': torch.Generator(device).manual_seed(0), 'device': device}
    with torch.inference_mode():
        for _ in range(frames):
            key = torch.randn(1 if network.shared_keys else objects, network.config.key_dim, h, w, **random)
            memory.add(key, torch.randn(objects, network.config.value_dim, h, w, **random))
    return memory


def filled_bank(network, args: argparse.Namespace, *, objects: int, frames: int):
    """A memory bank with random frames."""
    from inference.memory_bank import MemoryBank

    bank = MemoryBank(
        shared_keys=network.shared_keys, metric=network.similarity, top_k=args.config.top_k, capacity=frames
    )
    return fill(bank, network, args.size, objects=objects, frames=frames, device=device_of(args))


def stripes(size: tuple[int, int], objects: int):
    """A noisy image ``[3, H, W]`` and a mask ``[H, W]`` in which every object has pixels."""
    import torch

    height, width = size
    image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return image, (torch.arange(width) * (objects + 1) // width).to(torch.uint8).expand(height, width)


def half(device):
    """The half precision of ``--amp``."""
    import torch

    return torch.float16 if device.type == 'cuda' else torch.bfloat16


def rates(device, dtype) -> tuple[float, float]:
    """What this machine reaches: multiply-adds a second of a product of matrices, bytes read and written of a copy."""
    import torch

    a, b = (torch.randn(2048, 2048, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn(2**26, device=device)
    target = torch.empty_like(source)
    times = timed({'product': lambda: a @ b, 'copy': lambda: target.copy_(source)}, repeat=9, device=device)
    return 2048**3 / times['product'] * 1000, 2 * source.nbytes / times['copy'] * 1000


def padded(height: int, width: int) -> tuple[int, int]:
    return height + -height % 16, width + -width % 16


def measure_cost(args: argparse.Namespace) -> list[dict]:
    """Of the convolutions; the read is not among them, it depends on the memory."""
    import torch

    from model import build_network
    from scripts.roofline import Work

    config = load(args).config
    with torch.device('meta'):  # anew, with its batch norm
        network = build_network(config).eval()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    image = torch.zeros(1, 3, *padded(*args.size), device='meta')
    query = network.encode_query(image)
    rows = []
    for objects in args.objects:
        masks = torch.zeros(1, objects, *image.shape[2:], device='meta')
        readout = network.encode_memory(image, query, masks)[1]
        calls = {
            'key encoder': lambda: network.encode_query(image),
            'value encoder': lambda masks=masks: network.encode_memory(image, query, masks),
            'decoder': lambda readout=readout: network.decode(readout, query),
        }
        counts = {}
        for name, call in calls.items():
            with Work() as work:
                call()
            counts[name] = work.multiply_adds / 1e9
        memorised = 1 / args.mem_every if args.mem_every else 0
        frame = counts['key encoder'] + counts['decoder'] + memorised * counts['value encoder']
        rows.append(
            {
                'objects': objects,
                'parameters (M)': parameters / 1e6,
                **{f'{name} (G multiply-adds)': count for name, count in counts.items()},
                'frame (G multiply-adds)': frame,
            }
        )
    return rows


def measure_stages(args: argparse.Namespace) -> list[dict]:
    import torch

    from scripts.roofline import Work

    network, device = load(args).optimized(), device_of(args)
    dtype = half(device) if args.precision == 'amp' else torch.float32
    multiply_adds, copied = rates(device, dtype)
    log.info(
        'this machine: %.1f G multiply-adds/s (product of matrices), %.1f GB/s (copy)',
        multiply_adds / 1e9,
        copied / 1e9,
    )
    rows = []
    with torch.inference_mode(), torch.autocast(device.type, enabled=args.precision == 'amp', dtype=half(device)):
        image = torch.randn(1, 3, *padded(*args.size), device=device).contiguous(memory_format=torch.channels_last)
        query = network.encode_query(image)
        for objects in args.objects:
            masks = torch.rand(1, objects, *image.shape[2:], device=device) / objects
            for frames in args.memory_frames:
                bank = filled_bank(network, args, objects=objects, frames=frames)
                readout = bank.read(query.key[0])[None]
                calls = {
                    'key encoder': lambda: network.encode_query(image),
                    'value encoder': lambda masks=masks: network.encode_memory(image, query, masks),
                    'read': lambda bank=bank: bank.read(query.key[0]),
                    'decoder': lambda readout=readout: network.decode(readout, query),
                }
                times, memory = timed(calls, repeat=args.repeat, device=device), peaks(calls, device)
                for name, call in calls.items():
                    with Work() as work:
                        call()
                    best = 1000 * work.seconds(multiply_adds, copied)
                    peak = {'peak (MiB)': memory[name]} if memory else {}
                    rows.append(
                        {
                            'objects': objects,
                            'memory frames': frames,
                            'stage': name,
                            'G multiply-adds': work.multiply_adds / 1e9,
                            'MB moved': work.bytes / 1e6,
                            'attainable (ms)': best,
                            'measured (ms)': times[name],
                            'attainable / measured': best / times[name],
                            **peak,
                        }
                    )
    return rows


def measure_read(args: argparse.Namespace) -> list[dict]:
    import torch

    from scripts.baseline import ConcatenatedMemory, comparable

    network, device = load(args).optimized(), device_of(args)
    if not comparable(network):
        return []
    rows = []
    with torch.inference_mode():
        query_key = torch.randn(network.config.key_dim, *(side // 16 for side in padded(*args.size)), device=device)
        for objects in args.objects:
            for frames in args.memory_frames:
                sparse = filled_bank(network, args, objects=objects, frames=frames)
                dense = fill(
                    ConcatenatedMemory(top_k=args.config.top_k),
                    network,
                    args.size,
                    objects=objects,
                    frames=frames,
                    device=device,
                )
                calls = {
                    'sparse': lambda memory=sparse: memory.read(query_key),
                    'dense': lambda memory=dense: memory.read(query_key),
                }
                difference = float((calls['sparse']() - calls['dense']()).abs().max())
                times = timed(calls, repeat=args.repeat, device=device)
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


def measure_core(args: argparse.Namespace) -> list[dict]:
    """Milliseconds of a frame in float32: the mean over ``mem_every`` frames, one of which goes into the memory."""
    import torch

    from inference import InferenceConfig, InferenceCore
    from scripts.baseline import ConcatenatedMemory, comparable, straightforward

    network, device = load(args), device_of(args)
    if not comparable(network):
        return []
    networks = {'straightforward': straightforward(network), 'ours': network.optimized()}
    multiply_adds, _ = rates(device, torch.float32)
    period = args.mem_every or 1  # with the first frame alone in the memory, all frames after it cost the same
    config = InferenceConfig(top_k=args.config.top_k, mem_every=args.config.mem_every)
    rows = []
    for objects in args.objects:
        image, mask = stripes(args.size, objects)
        for frames in args.memory_frames:
            cores = {
                name: InferenceCore(network, config, num_frames=period * (frames + args.repeat + 2))
                for name, network in networks.items()
            }
            cores['straightforward'].memory = ConcatenatedMemory(top_k=config.top_k)
            for core in cores.values():
                core.step(image, mask)
                fill(core.memory, network, args.size, objects=objects, frames=frames - 1, device=device)
            probs = {}

            def run(name: str, cores=cores, probs=probs, image=image) -> None:
                for _ in range(period):
                    probs[name] = cores[name].step(image)

            times = timed({name: lambda name=name: run(name) for name in cores}, repeat=args.repeat, device=device)
            difference = float((probs['ours'] - probs['straightforward']).abs().max())
            encoders = encoder_rate(networks['straightforward'], objects, args)
            rows.append(
                {
                    'objects': objects,
                    'memory frames': frames,
                    **{f'{name} (ms)': value / period for name, value in times.items()},
                    'straightforward / ours': times['straightforward'] / times['ours'],
                    'largest difference': difference,
                    'its encoders / matrix rate': encoders / multiply_adds,
                }
            )
    return rows


def encoder_rate(network, objects: int, args: argparse.Namespace) -> float:
    """Multiply-adds a second of both encoders."""
    import torch

    from scripts.roofline import Work

    device = device_of(args)
    with torch.inference_mode():
        image = torch.randn(1, 3, *padded(*args.size), device=device)
        masks = torch.rand(1, objects, *image.shape[2:], device=device) / objects

        def encode() -> None:
            network.encode_memory(image, network.encode_query(image), masks)

        [milliseconds] = timed({'': encode}, repeat=args.repeat, device=device).values()
        with Work() as work:
            encode()
    return 1000 * work.multiply_adds / milliseconds


def measure_growth(args: argparse.Namespace) -> list[dict]:
    """Of a frame that is not memorised: one object over all memory frames, all objects over the shortest memory."""
    import torch

    network, device = load(args).optimized(), device_of(args)
    rows = []
    pairs = [(1, frames) for frames in args.memory_frames] + [
        (objects, min(args.memory_frames)) for objects in args.objects if objects > 1
    ]
    with torch.inference_mode():
        image = torch.randn(1, 3, *padded(*args.size), device=device)
        query = network.encode_query(image)
        for objects, frames in pairs:
            bank = filled_bank(network, args, objects=objects, frames=frames)

            def frame(bank=bank) -> None:
                query = network.encode_query(image)
                network.decode(bank.read(query.key[0])[None], query)

            times = timed(
                {'frame': frame, 'read': lambda bank=bank: bank.read(query.key[0])}, repeat=args.repeat, device=device
            )
            rows.append(
                {
                    'objects': objects,
                    'memory frames': frames,
                    **{f'{name} (ms)': value for name, value in times.items()},
                    'bank (MiB)': bank.nbytes / 2**20,
                }
            )
    return rows


def plot_growth(rows: list[dict], path: str) -> None:
    """Time and memory over memory frames (of one object) and over objects."""
    from scripts.plots import import_pyplot
    from util.files import atomic_path

    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout='constrained')
    alone = [row for row in rows if row['objects'] == 1]
    shortest = min(row['memory frames'] for row in rows)
    together = [row for row in rows if row['memory frames'] == shortest]
    for axis, chosen, variable in ((axes[0], alone, 'memory frames'), (axes[1], together, 'objects')):
        for column, marker in (('frame (ms)', 'o'), ('read (ms)', 's'), ('bank (MiB)', '^')):
            axis.plot([row[variable] for row in chosen], [row[column] for row in chosen], marker=marker, label=column)
        axis.set(xlabel=variable, xscale='log', yscale='log')
        axis.grid(alpha=0.3)
    axes[0].set_title('1 object')
    axes[1].set_title(f'{shortest} memory frame{"s" * (shortest > 1)}')
    axes[0].legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format='png', dpi=120)
    pyplot.close(figure)


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
    from inference.stream import peak_memory

    network, device = load(args).optimized(), device_of(args)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    core = InferenceCore(network, args.config, num_frames=frames)
    image, mask = stripes(args.size, objects)
    images = [image, 255 - image]  # in turn, so that not every frame is like the last
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


def print_table(name: str, rows: list[dict]) -> None:
    """As Markdown."""
    if not rows:
        return
    print(f'\n{name}\n\n| {" | ".join(rows[0])} |\n|{"---:|" * len(rows[0])}')
    for row in rows:
        print(
            '| '
            + ' | '.join(
                f'{value:.3g}'
                if isinstance(value, float) and value < 100
                else f'{value:.0f}'
                if isinstance(value, float)
                else str(value)
                for value in row.values()
            )
            + ' |'
        )


MEASURES = {
    'cost': measure_cost,
    'stages': measure_stages,
    'read': measure_read,
    'core': measure_core,
    'video': measure_videos,
    'growth': measure_growth,
}

if __name__ == '__main__':
    run_main(main)
