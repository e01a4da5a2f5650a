"""The forward pass of training: a clip of frames through the network that also does inference."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.aggregate import aggregate
from model.network import Network


def segment_clip(
    network: Network,
    rgb: Tensor,
    masks: Tensor,
    selector: Tensor,
    *,
    recompute: bool = False,
) -> Tensor:
    """Segment every frame of a clip but the first, each from all frames before it (Section 3.2 and 5).

    Frame 1 is segmented with frame 0 as the memory, frame 2 with frames 0 and 1, where frame 1 has the soft mask that
    was predicted for it. All of it is differentiable. The keys of all frames are encoded in one batch.

    Args:
        rgb: [B, T, 3, H, W], normalised for ImageNet.
        masks: [B, K, H, W] in [0, 1], of the first frame.
        selector: [B, K], 1 where the sample has the object; the others get probability 0.
        recompute: whether activations inside encoders and decoder are computed again in the backward pass, instead of
            being kept in memory.

    Returns:
        Aggregated logits [B, T-1, 1+K, H, W] of frames 1 .. T-1, the background first; float32.
    """

    def call(function: Callable, *args: object):
        return checkpoint(function, *args, use_reentrant=False) if recompute else function(*args)

    frames = rgb.unbind(1)
    batched = call(network.encode_query, torch.cat(frames))
    queries = [batched._make(maps) for maps in zip(*(each.chunk(len(frames)) for each in batched), strict=True)]

    memory_keys, memory_values, logits = [], [], []
    for t in range(1, len(frames)):
        key, value = call(network.encode_memory, frames[t - 1], queries[t - 1], masks)
        memory_keys.append(key)
        memory_values.append(value)
        readout = network.read(torch.stack(memory_keys, dim=3), torch.stack(memory_values, dim=3), queries[t])
        decoded = call(network.decode, readout, queries[t])
        with torch.autocast(rgb.device.type, enabled=False):
            prob = decoded.float().sigmoid() * selector[:, :, None, None]
            logits.append(aggregate(prob))
            masks = logits[-1].softmax(dim=1)[:, 1:]
    return torch.stack(logits, dim=1)


class ClipNetwork(nn.Module):
    """``segment_clip`` as the ``forward`` of a module, for wrappers that work on one (DistributedDataParallel)."""

    def __init__(self, network: Network, *, recompute: bool = False):
        super().__init__()
        self.network = network
        self.recompute = recompute

    def forward(self, rgb: Tensor, masks: Tensor, selector: Tensor) -> Tensor:
        return segment_clip(self.network, rgb, masks, selector, recompute=self.recompute)
