"""What an image must be for the networks: normalised by ImageNet's statistics, with sides that the stride divides.

This file does not import torch, so that the data sets can use it without torch.
"""

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# Mean and standard deviation of ImageNet's images, RGB in [0, 1].
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

STRIDE = 16
"""Pixels from one position of keys and values to the next."""

Array = TypeVar('Array', 'Tensor', 'np.ndarray')


def padding(height: int, width: int) -> tuple[int, int, int, int]:
    """The padding that makes both sides multiples of the stride: (left, right, top, bottom), half on each side.

    If a number of pixels is odd, the larger half is on the right or below. The order is that of
    ``torch.nn.functional.pad``.
    """
    extra_h, extra_w = -height % STRIDE, -width % STRIDE
    return extra_w // 2, extra_w - extra_w // 2, extra_h // 2, extra_h - extra_h // 2


def unpadded(padded: Array, padding: tuple[int, int, int, int]) -> Array:
    """``[..., H', W'] -> [..., H, W]``: a view without the padding; ``padding`` is what :func:`padding` returned."""
    left, right, top, bottom = padding
    return padded[..., top : padded.shape[-2] - bottom, left : padded.shape[-1] - right]
