"""Soft aggregation: independent object probabilities become one distribution with a background."""

import torch
from torch import Tensor

EPSILON = 1e-7


def aggregate(prob: Tensor) -> Tensor:
    """Logits of the background and the objects; their softmax is the aggregated probability.

    ``prob [B, K, H, W] in [0, 1] -> logits [B, 1 + K, H, W]``, background first and
    ``p(background) = prod(1 - p)``. Always in float32: ``1 - 1e-7`` is 1 in half precision.
    """
    prob = prob.float()
    background = (1 - prob).prod(dim=1, keepdim=True)
    return torch.logit(torch.cat([background, prob], dim=1), eps=EPSILON)
