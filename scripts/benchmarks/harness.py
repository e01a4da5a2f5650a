"""Tools that the benchmarks share: the measured case, networks, filled memories, and timing."""

import functools
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inference.config import InferenceConfig
from inference.memory_bank import MemoryBank
from model import VARIANTS, Network, build_network, load_network
from model.image import STRIDE
from scripts.benchmarks.baseline import ConcatenatedMemory
from util.distributed import choose_device


@dataclass(frozen=True, kw_only=True)
class Case:
    """The case to measure. It can be sent to another process."""

    network: str = 'stcn'
    """The name of a variant, or the path of a checkpoint."""
    is_file: bool = False
    """Whether ``network`` is the path of a checkpoint."""
    size: tuple[int, int] = (480, 854)
    """Height and width of a frame in pixels."""
    objects: Sequence[int] = (1,)
    memory_frames: Sequence[int] = (20,)
    video_frames: Sequence[int] = (20,)
    config: InferenceConfig = field(default_factory=InferenceConfig)
    precision: str = 'float32'
    """'float32', 'tf32' or 'amp'."""
    device_name: str | None = None
    repeat: int = 5

    @property
    def device(self) -> torch.device:
        return choose_device(self.device_name)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the padded frame that the network sees."""
        return padded(*self.size)

    @property
    def key_size(self) -> tuple[int, int]:
        """Height and width of keys and values."""
        return self.padded[0] // STRIDE, self.padded[1] // STRIDE


def padded(height: int, width: int) -> tuple[int, int]:
    """Height and width rounded up to multiples of the stride, to which ``InferenceCore`` pads a frame."""
    return height + -height % STRIDE, width + -width % STRIDE


def machine(device: torch.device) -> str:
    """A description of the device."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'{platform.machine()} CPU, {torch.get_num_threads()} threads'


def load(case: Case) -> Network:
    """Load the network to be measured onto its device. It is not yet optimised for inference.

    A variant gets random weights.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = case.precision == 'tf32'
    if case.is_file:
        return load_network(case.network, device=case.device)
    torch.manual_seed(0)
    return build_network(VARIANTS[case.network]).eval().to(case.device)


def timed(calls: dict[str, Callable[[], object]], *, repeat: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each call. The calls take turns, so that other load on the machine affects all."""
    seconds = {name: [] for name in calls}
    for turn in range(repeat + 1):
        for name, call in calls.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def peaks(calls: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """MiB that each call allocates on a GPU at its peak, beyond what was allocated before. Empty for a CPU."""
    if device.type != 'cuda':
        return {}
    found = {}
    for name, call in calls.items():
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        found[name] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return found


@functools.cache
def rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Measure the multiply-adds per second of a matrix product, and the bytes per second that a copy reads and writes.

    The result is cached, so each device and type is measured only once in a process.
    """
    a, b = (torch.randn(2048, 2048, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn(2**26, device=device)
    target = torch.empty_like(source)
    times = timed({'product': lambda: a @ b, 'copy': lambda: target.copy_(source)}, repeat=9, device=device)
    return 2048**3 / times['product'] * 1000, 2 * source.nbytes / times['copy'] * 1000


def half(device: torch.device) -> torch.dtype:
    """The half precision of ``--amp``."""
    return torch.float16 if device.type == 'cuda' else torch.bfloat16


def fill(
    memory: MemoryBank | ConcatenatedMemory, network: Network, case: Case, *, objects: int, frames: int
) -> MemoryBank | ConcatenatedMemory:
    """Add random frames to a memory one by one, since all of them together would take too much space."""
    random = {'generator': torch.Generator(case.device).manual_seed(0), 'device': case.device}
    with torch.inference_mode():
        for _ in range(frames):
            key = torch.randn(1 if network.shared_keys else objects, network.config.key_dim, *case.key_size, **random)
            memory.add(key, torch.randn(objects, network.config.value_dim, *case.key_size, **random))
    return memory


def filled_bank(network: Network, case: Case, *, objects: int, frames: int) -> MemoryBank:
    """A memory bank with random frames."""
    bank = MemoryBank(
        shared_keys=network.shared_keys, metric=network.similarity, top_k=case.config.top_k, capacity=frames
    )
    return fill(bank, network, case, objects=objects, frames=frames)


def random_image(case: Case) -> Tensor:
    """A random image ``[1, 3, H, W]``, normalised and padded."""
    return torch.randn(1, 3, *case.padded, device=case.device)


def random_masks(case: Case, objects: int) -> Tensor:
    """Random masks ``[1, K, H, W]``, whose sum is at most one."""
    return torch.rand(1, objects, *case.padded, device=case.device) / objects


def stripes(size: tuple[int, int], objects: int) -> tuple[Tensor, Tensor]:
    """A noisy image ``[3, H, W]`` and a mask ``[H, W]`` in which every object has pixels."""
    height, width = size
    image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return image, (torch.arange(width) * (objects + 1) // width).to(torch.uint8).expand(height, width)
