"""Which memory frame goes when there are too many."""

from typing import Any

import torch
from torch import Tensor


class LeastUsed:
    """The frame with the least weight a read since it came goes; protected ones stay, whatever their number.

    A slot is a place of the memory; this class keeps three numbers a slot, and knows nothing of keys and values.

    Args:
        max_frames: bound of the memory frames; a temporary one comes on top.
    """

    def __init__(self, max_frames: int):
        self.max_frames = max_frames
        self.protected: list[bool] = []
        self._reads: list[int] = []  # since the frame came
        self._weight = torch.zeros(0)  # that it got in them, on the device

    def add(self, *, protected: bool, device: torch.device) -> None:
        """A frame has come, into the next slot."""
        self.protected.append(protected)
        self._reads.append(0)
        self._weight = torch.cat([self._weight.to(device), torch.zeros(1, device=device)])

    def count(self, slots: Tensor, weights: Tensor) -> None:
        """Add the ``weights`` of a read to the ``slots`` of their positions, all of one shape.

        What a temporary frame got is not kept.
        """
        weight = torch.zeros(len(self.protected) + 1, device=weights.device)  # a temporary frame is the last one
        weight.index_add_(0, slots.flatten(), weights.flatten())
        self._weight += weight[:-1]

    def finish_read(self) -> None:
        """The weights of a whole frame were counted."""
        self._reads = [reads + 1 for reads in self._reads]

    def choose(self) -> int | None:
        """The slot that has to go; ``None`` where none has to, or none may.

        The newest frame, which nothing has read yet, goes only where there is no other.
        """
        candidates = [slot for slot, protected in enumerate(self.protected) if not protected]
        if len(self.protected) <= self.max_frames or not candidates:
            return None
        if len(candidates) > 1 and candidates[-1] == len(self.protected) - 1:
            candidates.pop()
        weight = self._weight.tolist()
        return min(candidates, key=lambda slot: weight[slot] / max(self._reads[slot], 1))

    def state(self) -> dict[str, Any]:
        """What has to be known to :meth:`restore` it: numbers and lists of numbers."""
        return {'protected': self.protected, 'reads': self._reads, 'weight': self._weight.cpu()}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Become what another one was."""
        self.protected, self._reads = list(state['protected']), list(state['reads'])
        self._weight = state['weight'].to(device)

    def keep(self, slots: list[int]) -> None:
        """The frames of these slots are left, in this order."""
        self.protected = [self.protected[slot] for slot in slots]
        self._reads = [self._reads[slot] for slot in slots]
        self._weight = self._weight[slots]
