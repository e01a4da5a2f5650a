"""How sure a network is of the objects of a frame."""

import torch
from torch import Tensor


def expected_iou(prob: Tensor) -> Tensor:
    """The intersection over union that the masks of a frame would have, were the probabilities true.

    ``prob [1 + K, H, W]``, the background first, ``-> [K]`` in (0, 1]. The mask of an object is where it is the most
    probable; the expected area of what is and of what should be in it are sums of its probabilities. One pixel is
    added to both, so that an object that is surely not there has 1.
    """
    of_objects = prob[1:]
    labels = torch.arange(1, len(prob), device=prob.device)[:, None, None]
    inside = prob.argmax(dim=0) == labels
    intersection = (of_objects * inside).sum(dim=(1, 2))
    union = torch.where(inside, 1, of_objects).sum(dim=(1, 2))
    return (intersection + 1) / (union + 1)
