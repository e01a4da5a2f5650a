"""3x3 convolutions with fewer multiplications: Winograd's minimal filtering (Lavin and Gray, CVPR 2016).

One output of F(4, 3) in one dimension costs 6 products for 4 positions in place of 12, and both dimensions multiply:
a tile of 4 x 4 outputs takes 36 products of each pair of channels in place of 144. The transforms before and after
are sums along rows and then along columns, and the products are those of matrices, one for each of the 36 elements.

Only for inference on a CPU: nothing here is differentiable. Results differ from a direct convolution by rounding.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.threads import share

MIN_CHANNELS = 64
"""Of input and output, with one thread. With fewer, the transforms take what the products save."""
MIN_CHANNELS_OF_THREADS = 128
"""The same with several threads, where 64 channels were measured to gain nothing."""
SMALL = 256 * 256
"""Pairs of channels below which the larger weights cost little memory, however rarely a convolution is used."""
LARGE = 512 * 512
"""Pairs of channels from which on tiles are smaller, since their weights grow less; see :func:`tile_of`."""
BLOCK = 160
"""Tiles that a thread transforms at a time. They stay in the cache, and fill a product of matrices."""


Convolution = Callable[[Tensor], Tensor]
Views = Sequence[Tensor]


class Transform(NamedTuple):
    """F(m, 3) in one dimension, n = m + 2: ``outputs(filters @ g * inputs(d))`` of a filter g and n values d."""

    filters: tuple[tuple[float, float, float], ...]  # [n, 3]
    inputs: Callable[[Views, Views], None]  # n views are read, n are written
    outputs: Callable[[Views, Views], None]  # n are read and spoilt, m are written


def _inputs_of_4(d: Views, y: Views) -> None:
    torch.sub(d[4], d[2], out=y[0])
    torch.sub(d[3], d[1], out=y[5])
    torch.add(y[0], y[5], alpha=2, out=y[3])
    torch.sub(y[0], y[5], alpha=2, out=y[4])
    torch.sub(d[0], d[2], out=y[1])
    y[0].add_(y[1], alpha=4)
    torch.sub(d[5], d[3], out=y[1])
    torch.sub(y[1], y[5], alpha=4, out=y[5])
    torch.sub(d[4], d[2], alpha=4, out=y[1])
    torch.sub(d[3], d[1], alpha=4, out=y[2])
    y[1].add_(y[2])
    torch.sub(y[1], y[2], alpha=2, out=y[2])


def _outputs_of_4(m: Views, z: Views) -> None:
    torch.add(m[1], m[2], out=z[0])
    torch.sub(m[1], m[2], out=z[1])
    torch.add(m[3], m[4], out=m[1])
    m[3].sub_(m[4])
    torch.add(z[0], m[1], alpha=4, out=z[2])
    torch.add(z[1], m[3], alpha=8, out=z[3])
    z[3].add_(m[5])
    z[1].add_(m[3], alpha=2)
    z[0].add_(m[1]).add_(m[0])


def _inputs_of_2(d: Views, y: Views) -> None:
    torch.sub(d[0], d[2], out=y[0])
    torch.add(d[1], d[2], out=y[1])
    torch.sub(d[2], d[1], out=y[2])
    torch.sub(d[1], d[3], out=y[3])


def _outputs_of_2(m: Views, z: Views) -> None:
    torch.add(m[0], m[1], out=z[0])
    z[0].add_(m[2])
    torch.sub(m[1], m[2], out=z[1])
    z[1].sub_(m[3])


# Both interpolate at 0, 1, -1 (and 2, -2) and infinity. An element of the point 1 counts once for every output.
TRANSFORMS = {
    2: Transform(((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)), _inputs_of_2, _outputs_of_2),
    4: Transform(
        (
            (1 / 4, 0, 0),
            (-1 / 6, -1 / 6, -1 / 6),
            (-1 / 6, 1 / 6, -1 / 6),
            (1 / 24, 1 / 12, 1 / 6),
            (1 / 24, -1 / 12, 1 / 6),
            (0, 0, 1),
        ),
        _inputs_of_4,
        _outputs_of_4,
    ),
}
POINT_ONE = 1


class WinogradConv2d(nn.Module):
    """The convolution ``conv`` (3x3, stride 1, padding 1), whose weights it does not keep.

    ``[B, I, h, w] -> [B, O, h, w]`` in channels_last. Under autocast it computes in float32 all the same, and rounds
    the result: the sums of a transform are larger than what comes of them, and half precision would keep little.
    """

    weight: Tensor  # [columns * rows, I, O] of a tile's elements

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.tile = tile_of(conv)
        down, right = (torch.tensor(TRANSFORMS[m].filters, dtype=torch.float64) for m in self.tile)
        direct = conv.weight.detach().double().flatten(2)  # [O, I, 9]
        weight = conv.weight.new_empty(len(right) * len(down), conv.in_channels, conv.out_channels)
        for element, (c, r) in zip(weight, itertools.product(right, down), strict=True):
            element.copy_((direct @ torch.outer(r, c).flatten()).T)
        self.register_buffer('weight', weight)
        self.register_buffer('bias', None if conv.bias is None else conv.bias.detach())

    def forward(self, x: Tensor, *, relu: bool = False) -> Tensor:
        """``relu``: of the ReLU of ``x``."""
        return convolve(x, self.weight, self.bias, self.tile, relu=relu)

    def split(self, channels: int, *, relu: bool = False) -> tuple[Convolution, Convolution]:
        """This convolution of its first input ``channels``, and of the others with the bias; they sum to the whole."""
        own, shared = self.weight[:, :channels], self.weight[:, channels:]
        return (
            lambda x: convolve(x, own, None, self.tile, relu=relu),
            lambda x: convolve(x, shared, self.bias, self.tile, relu=relu),
        )


def tile_of(conv: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns of the outputs that are computed together.

    Tiles of 4 x 4 take a quarter of the products with 4 times the weights, 36 / 9. With many weights that is much
    memory: tiles of 2 x 4 take a third with 24 / 9, and those of 2 x 2 take 4 / 9 with 16 / 9 times the weights.
    """
    pairs = conv.in_channels * conv.out_channels
    if pairs < LARGE:
        return 4, 4
    return (2, 4) if pairs < 2 * LARGE else (2, 2)


def fits(conv: nn.Conv2d, *, threads: int) -> bool:
    """Whether Winograd's form can compute this convolution, and is faster with so many threads."""
    plain = (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
    least = MIN_CHANNELS if threads == 1 else MIN_CHANNELS_OF_THREADS
    return plain and conv.groups == 1 and min(conv.in_channels, conv.out_channels) >= least


def replace_convolutions(module: nn.Module, names: Collection[str]) -> None:
    """Replace convolutions below ``module`` that :func:`fits` by their Winograd form, in place.

    Those with many weights are replaced in the children ``names`` alone. Which ones gain depends on the number of
    threads that PyTorch has at this moment.
    """
    found = [
        (path, child)
        for path, child in module.named_modules()
        if isinstance(child, nn.Conv2d)
        and fits(child, threads=torch.get_num_threads())
        and (path.split('.')[0] in names or child.in_channels * child.out_channels < SMALL)
    ]
    # The largest first: the memory that its weights leave has room for the new weights of smaller ones.
    found.sort(key=lambda pair: pair[1].weight.numel())
    while found:
        path, child = found.pop()
        parent, _, name = path.rpartition('.')
        setattr(module.get_submodule(parent), name, WinogradConv2d(child))


@torch.compiler.disable
@torch.no_grad()
def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, tile: tuple[int, int], *, relu: bool) -> Tensor:
    """``x [B, I, h, w] -> [B, O, h, w]`` with transformed weights for outputs of ``tile``; of the ReLU of ``x``."""
    B, _, H, W = x.shape
    high, wide = -(-H // tile[0]), -(-W // tile[1])  # tiles
    threads = torch.get_num_threads()
    blocks = -(-high * wide // (BLOCK * threads)) * threads  # of an image: as many for each thread
    step = -(-high // blocks)  # rows of tiles in a block

    dtype = torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else x.dtype
    out = torch.empty(B, weight.shape[2], H, W, dtype=dtype, memory_format=torch.channels_last)
    work = list(itertools.product(range(B), range(0, high, step)))
    share(work, [_computer(x, out, weight, bias, tile, step, relu=relu) for _ in work[:threads]])
    return out


def _computer(
    x: Tensor, out: Tensor, weight: Tensor, bias: Tensor | None, tile: tuple[int, int], step: int, *, relu: bool
) -> Callable[[Iterator[tuple[int, int]]], None]:
    """Make a function that computes blocks of ``out``, one after the other in the same memory.

    A block has ``step`` rows of tiles. It is given as its image and the first of these rows.
    """
    (H, W), (I, O), (m, n) = x.shape[2:], weight.shape[1:], tile  # noqa: E741
    high, wide = -(-H // m), -(-W // n)  # tiles
    rows, columns = m + 2, n + 2
    # What is needed before the products and after them shares its memory with them.
    (padded, in_rows), (products,), (found,) = _scratch(
        [(m * step + 2, n * wide + 2, I), (rows, step, n * wide + 2, I)],
        [(columns, rows, step, wide, O)],
        [(m * step, n * wide, O)],
    )
    (elements,), (in_columns,) = _scratch([(columns, rows, step, wide, I)], [(n, rows, step, wide, O)])

    # All views are made once: making one takes as long as adding some thousand values.
    rows_of_inputs = [padded[r : r + m * step : m] for r in range(rows)], in_rows.unbind()
    columns_of_inputs = [in_rows[:, :, c : c + n * wide : n] for c in range(columns)], elements.unbind()
    factors = elements.view(-1, step * wide, I), weight
    matrices = products.view(-1, step * wide, O)
    point_one = products[POINT_ONE, POINT_ONE]
    columns_of_outputs = products.unbind(), in_columns.unbind()
    rows_of_outputs = in_columns.unbind(1), found.view(step, m, wide, n, O).permute(1, 3, 0, 2, 4).unbind()

    def compute(blocks: Iterator[tuple[int, int]]) -> None:
        for b, first in blocks:
            # The last block of an image begins in the one before, so that all are of one size.
            top = m * min(first, high - step)
            _pad(x[b].permute(1, 2, 0), top, padded)
            if relu:
                padded.clamp_(min=0)
            TRANSFORMS[m].inputs(*rows_of_inputs)
            TRANSFORMS[n].inputs(*columns_of_inputs)
            torch.bmm(*factors, out=matrices)
            if bias is not None:
                point_one.add_(bias)
            TRANSFORMS[n].outputs(*columns_of_outputs)
            TRANSFORMS[m].outputs(*rows_of_outputs)
            # Another thread may write those rows of tiles that the block before has.
            begin, end = m * first, min(top + m * step, H)
            out[b].permute(1, 2, 0)[begin:end] = found[begin - top : end - top, :W]

    return compute


def _scratch(*layouts: Sequence[tuple[int, ...]]) -> list[list[Tensor]]:
    """Tensors of the shapes of each layout, one after the other, for all layouts in the same place."""
    sizes = [[math.prod(shape) for shape in layout] for layout in layouts]
    buffer = torch.empty(max(map(sum, sizes)))
    return [
        [part.view(shape) for part, shape in zip(buffer[: sum(size)].split(size), layout, strict=True)]
        for size, layout in zip(sizes, layouts, strict=True)
    ]


def _pad(source: Tensor, top: int, padded: Tensor) -> None:
    """Rows ``top - 1`` and on of ``source [h, w, I]``, as many as ``padded`` has, between zeros."""
    first, last = max(top - 1, 0), min(top - 1 + len(padded), len(source))
    before, after = first - (top - 1), last - (top - 1)
    padded[:before] = 0
    padded[after:] = 0
    padded[:, 0] = 0
    padded[:, source.shape[1] + 1 :] = 0
    padded[before:after, 1 : source.shape[1] + 1] = source[first:last]
