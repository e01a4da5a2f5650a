"""A network adapts to one video: a copy is trained for a short time on clips made of the video's annotated frames."""

import copy
import logging
import time
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from dataset.annotated import AnnotatedDataset
from dataset.sampling import Address
from inference.stream import TooLittleMemoryError
from model.clip import segment_clip
from model.losses import clip_loss
from model.network import Network
from training.loop import NotFiniteError
from util.errors import cause_of

log = logging.getLogger(__name__)

LEARNING_RATE = 2e-5  # chosen on the videos held aside; see docs/training_log.md
LAST_RATE = 0.1  # fraction of the learning rate at the end; in between it falls linearly
WARMUP = 5  # iterations over which the learning rate rises at first
CLIP_NORM = 1.0  # largest norm of a gradient
CROP_SIZE = 320  # side of the frames of a clip in pixels


def adapt(
    network: Network, frames: Iterable[tuple[np.ndarray, np.ndarray]], *, seconds: float = 30, seed: int = 0
) -> Network:
    """Return a copy of a network that was trained for a while on clips made of the annotated frames of one video.

    The clips are those of :class:`dataset.annotated.AnnotatedDataset`, one per iteration, and the loss is that of the
    ordinary training. The given network is not changed.

    Args:
        network: as :func:`model.load_network` returns it. One from ``load_model`` cannot be trained any more.
        frames: images uint8 [H, W, 3] with their labels uint8 [H, W]. At least one must show an object. A generator is
            welcome: each frame is reduced before the next one is taken.
        seconds: how long to train. On a CPU this is processor time, which all threads of the process share; so other
            programs and the number of threads hardly change the number of iterations. On other devices it is the time
            on the clock. Two runs may therefore differ by some iterations, and then in their weights.
        seed: of the clips.

    Returns:
        The copy in eval mode. Call its ``optimize_()`` before a long segmentation.

    Raises:
        DataError: no frame shows an object, or an image and its labels do not fit together.
        NotFiniteError: the loss is not finite any more.
        TooLittleMemoryError: the GPU has too little memory.
    """
    adapting = Adapting(network, frames, seed=seed)
    for _ in adapting.steps(seconds):
        pass
    return adapting.network


class Adapting:
    """The work of :func:`adapt` in steps, for a caller that shows progress or wants to stop. Same arguments.

    Attributes:
        network: the copy that is trained, in eval mode when all steps are done.
    """

    def __init__(self, network: Network, frames: Iterable[tuple[np.ndarray, np.ndarray]], *, seed: int = 0):
        if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
            raise ValueError(
                'network: expected one that can be trained, as model.load_network returns it; found one that '
                'optimize_() made ready for inference, as load_model does'
            )
        self.dataset = AnnotatedDataset(frames, size=CROP_SIZE)
        self.network = copy.deepcopy(network).train()
        self.seed = seed

    def steps(self, seconds: float) -> Iterator[float]:
        """Train for ``seconds``, one iteration a step. Yields the share of the time that is spent, below 1."""
        network, dataset = self.network, self.dataset
        losses: list[float] = []
        device = network.device
        if device.type == 'cpu':
            network.to(memory_format=torch.channels_last)  # a fifth faster
        optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        clock = time.process_time if device.type == 'cpu' else time.perf_counter
        start = clock()
        while (spent := (clock() - start) / seconds) < 1:
            yield spent
            rate = LEARNING_RATE * min(1, (len(losses) + 1) / WARMUP) * (1 - (1 - LAST_RATE) * spent)
            for group in optimizer.param_groups:
                group['lr'] = rate
            sample = dataset[Address(self.seed, *divmod(len(losses), len(dataset)))]
            optimizer.zero_grad()
            try:
                loss = clip_loss_of(network, sample)
                loss.backward()
            except torch.OutOfMemoryError as error:
                raise TooLittleMemoryError(
                    f'out of GPU memory while the network adapts; less is needed without adapting ({cause_of(error)})'
                ) from error
            nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
            optimizer.step()
            losses.append(loss.item())
            if not np.isfinite(losses[-1]):
                raise NotFiniteError(f'adapting: the loss of iteration {len(losses)} is not finite: {losses[-1]}')
        if losses:
            quarter = max(1, len(losses) // 4)
            log.info(
                'adapted: %d iterations, loss %.3f in the first quarter, %.3f in the last',
                len(losses),
                np.mean(losses[:quarter]),
                np.mean(losses[-quarter:]),
            )
        network.eval()


def clip_loss_of(network: Network, sample: dict) -> Tensor:
    """The loss of one clip. A clip of one object goes without the channel of the second, which saves time."""
    device = network.device
    K = int(sample['selector'].sum())
    rgb, masks, target = (sample[name][None].to(device) for name in ('rgb', 'masks', 'target'))
    selector = sample['selector'][None, :K].to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bfloat16(device)):
        logits = segment_clip(network, rgb, masks[:, 0, :K].float(), selector)
    return clip_loss(logits, target[:, 1:], selector, fraction=1.0)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 without emulating it."""
    if device.type == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == 'cpu' and torch.backends.cpu.get_cpu_capability() == 'AVX512'
