"""What an image has to be for the networks: ImageNet's normalisation, and sides that are multiples of the stride.

Without torch, so that the data sets can use it, too.
"""

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# Of RGB in [0, 1] over ImageNet.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

STRIDE = 16
"""Pixels from one position of keys and values to the next."""

Array = TypeVar('Array', 'Tensor', 'np.ndarray')


def padding(height: int, width: int) -> tuple[int, int, int, int]:
    """What pads an image to multiples of the stride (left, right, top, bottom): half on each side.

    Of an odd number the larger half is right and below. The order is that of ``torch.nn.functional.pad``.
    """
    extra_h, extra_w = -height % STRIDE, -width % STRIDE
    return extra_w // 2, extra_w - extra_w // 2, extra_h // 2, extra_h - extra_h // 2


def unpadded(padded: Array, padding: tuple[int, int, int, int]) -> Array:
    """``[..., H', W'] -> [..., H, W]``: a view without the padding that :func:`padding` says."""
    left, right, top, bottom = padding
    return padded[..., top : padded.shape[-2] - bottom, left : padded.shape[-1] - right]
