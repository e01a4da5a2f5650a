"""Chooses the memory frame to evict when there are too many."""

from typing import Any

import torch
from torch import Tensor


class LeastUsed:
    """Evicts the frame that got the least weight per read since it was added. Protected frames are never evicted.

    A slot is a place in the memory for one frame. This class keeps three numbers for each slot; it does not know the
    keys and values.

    Args:
        max_frames: the largest number of memory frames, without a temporary one.
    """

    def __init__(self, max_frames: int):
        self.max_frames = max_frames
        self.protected: list[bool] = []
        self._reads: list[int] = []  # reads since the frame was added
        self._weight = torch.zeros(0)  # total weight that the frame got in these reads, on the device

    def add(self, *, protected: bool, device: torch.device) -> None:
        """Register a frame that was added in the next slot."""
        self.protected.append(protected)
        self._reads.append(0)
        self._weight = torch.cat([self._weight.to(device), torch.zeros(1, device=device)])

    def count(self, slots: Tensor, weights: Tensor) -> None:
        """Count the weights that positions of the memory got in a read.

        ``slots`` has the slot of the frame that each position belongs to, in the shape of ``weights``. The weights of
        a temporary frame are not kept.
        """
        weight = torch.zeros(len(self.protected) + 1, device=weights.device)  # a temporary frame is the last one
        weight.index_add_(0, slots.flatten(), weights.flatten())
        self._weight += weight[:-1]

    def finish_read(self) -> None:
        """End a read: the weights of a whole query frame were counted."""
        self._reads = [reads + 1 for reads in self._reads]

    def choose(self) -> int | None:
        """The slot to evict; ``None`` if there are not too many frames or all are protected.

        The newest frame, which was never read, is chosen only if there is no other.
        """
        candidates = [slot for slot, protected in enumerate(self.protected) if not protected]
        if len(self.protected) <= self.max_frames or not candidates:
            return None
        if len(candidates) > 1 and candidates[-1] == len(self.protected) - 1:
            candidates.pop()
        weight = self._weight.tolist()
        return min(candidates, key=lambda slot: weight[slot] / max(self._reads[slot], 1))

    def state(self) -> dict[str, Any]:
        """The state for :meth:`restore`: lists of numbers and a tensor."""
        return {'protected': self.protected, 'reads': self._reads, 'weight': self._weight.cpu()}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue with the ``state()`` of another object."""
        self.protected, self._reads = list(state['protected']), list(state['reads'])
        self._weight = state['weight'].to(device)

    def keep(self, slots: list[int]) -> None:
        """Keep only the frames of these slots, in this order."""
        self.protected = [self.protected[slot] for slot in slots]
        self._reads = [self._reads[slot] for slot in slots]
        self._weight = self._weight[slots]
