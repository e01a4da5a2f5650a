"""An exponential moving average of the weights: what is evaluated in place of the last ones."""

from pathlib import Path

import torch
from torch import nn

from model import CheckpointError
from model.checkpoint import network_from_checkpoint


class WeightAverage:
    """``average <- d * average + (1 - d) * weights`` after each optimizer step, in float32.

    At the n-th update ``d = min(decay, (1 + n) / (10 + n))``, where n starts at 0: early on, weights that are far from
    the present ones do not linger. A step that the gradient scaler skips is an update as well. Only parameters are
    averaged; the statistics of batch norm are frozen. Processes that hold the same weights hold the same average.

    Args:
        network: whose weights the average starts from.
        decay: d after the first updates, in [0, 1); the last ``1 / (1 - decay)`` iterations count most.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0  # so far, the n of the next one
        self.weights = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights of a network, which is the one that the average began with, some steps later."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.weights.values()), list(network.parameters()), 1 - decay)
        self.updates += 1

    def restore(self, content: dict, path: str | Path) -> None:
        """Continue the average of a training checkpoint that has one. Raises ``CheckpointError`` if it is damaged."""
        updates = content.get('average_updates')
        if not isinstance(updates, int) or updates < 0:
            raise CheckpointError(f'{path}: expected the number of updates of its average, found {updates!r}')
        averaged = network_from_checkpoint(content, path, widen=None)
        for name, value in averaged.named_parameters():
            self.weights[name].copy_(value.detach())
        self.updates = updates
