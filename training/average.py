"""An exponential moving average of the weights, which is evaluated instead of the last weights."""

from pathlib import Path

import torch
from torch import nn

from model import CheckpointError
from model.checkpoint import network_from_checkpoint


class WeightAverage:
    """``average <- d * average + (1 - d) * weights`` after each optimizer step, in float32.

    At the n-th update ``d = min(decay, (1 + n) / (10 + n))``, where n starts at 0. So at the beginning, when weights
    change most, old weights are forgotten fast. A step that the gradient scaler skips is an update as well. Only
    parameters are averaged, since the statistics of batch norm are frozen. All processes have the same average.

    Args:
        network: the average starts from its weights.
        decay: d after the first updates, in [0, 1). The average is mostly that of the last ``1 / (1 - decay)``
            iterations.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0  # so far, the n of the next one
        self.weights = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Update the average with the present weights of the network that it started from."""
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
