"""Blocks of a MobileNetV2 computed a strip of rows at a time, for inference on a CPU.

Such a block expands its channels, filters each of them by itself, and projects them back to few. At strides 2 and 4
the wide features in between are the largest of the network by far, and each operation on them waits for memory. The
features of one strip stay in the cache, and threads share the strips. The results are the same but for rounding.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual

from model.threads import share

LARGE = 2**21
"""A block with at least this many values between expansion and projection is computed in strips."""
STRIP = 2**19
"""The number of these values in one strip."""


class InStrips(nn.Module):
    """An ``InvertedResidual`` whose batch norm is folded: ``[B, I, h, w] -> [B, O, h, w]``."""

    def __init__(self, block: InvertedResidual):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        *expand, (depthwise, _, activation), project, _ = self.block.conv  # the first block does not expand
        B, _, H, W = x.shape
        if B * H * W * depthwise.in_channels < LARGE:
            return self.block(x)
        stride, reach = depthwise.stride[0], depthwise.padding[0]
        height, width = ((size - 1) // stride + 1 for size in (H, W))
        size = (B, project.out_channels, height, width)
        out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

        def compute(tops: Iterator[int]) -> None:
            for top in tops:
                bottom = min(top + rows, height)
                first, last = top * stride - reach, (bottom - 1) * stride + reach + 1
                strip = x[:, :, max(first, 0) : min(last, H)]
                for layer in expand:
                    strip = layer(strip)
                if first < 0 or last > H:  # F.pad copies the strip even where it adds nothing
                    strip = F.pad(strip, (0, 0, max(-first, 0), max(last - H, 0)))
                strip = F.conv2d(
                    strip,
                    depthwise.weight,
                    depthwise.bias,
                    depthwise.stride,
                    (0, reach),
                    depthwise.dilation,
                    depthwise.groups,
                )
                out[:, :, top:bottom] = project(activation(strip))

        threads = torch.get_num_threads()
        strips = -(-B * H * W * depthwise.in_channels // (STRIP * threads)) * threads  # as many for each thread
        rows = -(-height // strips)
        tops = range(0, height, rows)
        share(tops, [compute] * min(threads, len(tops)))
        return out.add_(x) if self.block.use_res_connect else out


def replace_blocks(module: nn.Module) -> None:
    """Replace each ``InvertedResidual`` in ``module``, in place, by one that computes in strips where it is large."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, InvertedResidual):
                setattr(parent, name, InStrips(child))
