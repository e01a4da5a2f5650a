"""A network that learns one video from its annotated frames, before it segments the others."""

import copy
import logging
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dataset.annotated import AnnotatedDataset
from dataset.sampling import Address
from model.clip import segment_clip
from model.losses import clip_loss
from model.network import Network

log = logging.getLogger(__name__)

LEARNING_RATE = 5e-5
LAST_RATE = 0.1  # of it, at the end
WARMUP = 5  # iterations
CLIP_NORM = 1.0
MOST_FRAMES = 32
"""More annotated frames than these teach nothing more in so short a time."""


def adapt(
    network: Network,
    frames: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    seconds: float,
    working_size: int = 480,
    crop_size: int = 320,
    seed: int = 0,
) -> Network:
    """A copy of a network, trained for a while on clips that are made of the annotated frames of one video.

    The clips and the loss are those of the training on synthetic clips; the network that is given stays as it is.

    Args:
        network: as ``model.load_network`` returns it; not made ready for inference.
        frames: images uint8 [H, W, 3] with labels uint8 [H, W]; at least one shows an object.
        seconds: how long. On a CPU they are the process's own time, so that the result depends less on what else runs.
        working_size: shorter side at which the network will work.
        crop_size: side of the frames that it is trained on.

    Returns:
        The copy, in evaluation mode.
    """
    network = copy.deepcopy(network).train()
    dataset = AnnotatedDataset(frames, size=crop_size, working_size=working_size)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    clock = time.process_time if network.device.type == 'cpu' else time.perf_counter
    start, iteration, losses = clock(), 0, []
    while (spent := (clock() - start) / seconds) < 1:
        rate = LEARNING_RATE * min(1, (iteration + 1) / WARMUP) * (1 - (1 - LAST_RATE) * spent)
        for group in optimizer.param_groups:
            group['lr'] = rate
        sample = dataset[Address(seed, *divmod(iteration, len(dataset)))]
        loss = _loss(network, sample)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimizer.step()
        losses.append(loss.detach())
        iteration += 1
    if losses:
        quarter = max(1, iteration // 4)
        log.info(
            'adapted to the video: %d iterations, loss %.3f in the first quarter, %.3f in the last',
            iteration,
            torch.stack(losses[:quarter]).mean(),
            torch.stack(losses[-quarter:]).mean(),
        )
    return network.eval()


def _loss(network: Network, sample: dict) -> Tensor:
    """Of one clip, as in training; a clip of one object does without the channel of the second."""
    device = network.device
    K = int(sample['selector'].sum())
    rgb, masks, target = (sample[name][None].to(device) for name in ('rgb', 'masks', 'target'))
    selector = sample['selector'][None, :K].to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        logits = segment_clip(network, rgb, masks[:, 0, :K].float(), selector)
    return clip_loss(logits, target[:, 1:], selector, fraction=1.0)
