"""The similarities of keys that a memory read can use (Eq. 5 and Table 1), by name.

This file does not import torch, so that a command line can check the names without waiting for it.
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Dot:
    """The scaled dot product of STM: ``S(k_M, k_Q) = k_M . k_Q / sqrt(Ck)``.

    Every similarity here is computed as ``scale(Ck) k_M . k_Q + bias(k_M)``. A term that depends on ``k_Q`` alone is
    left out, since it is the same for the whole memory and the softmax over the memory cancels it. Where the query
    positions are compared for one memory position, ``bias(k_Q)`` counts and ``bias(k_M)`` is left out.
    """

    def scale(self, dim: int) -> float:
        """The factor of the dot product, for keys of ``dim`` channels."""
        return 1 / math.sqrt(dim)

    def bias(self, key: 'Tensor') -> 'Tensor | None':
        """The term that depends on one key alone, ``[..., N, Ck] -> [..., N]``; ``None`` if there is no such term."""
        return None


class L2(Dot):
    """The negative squared distance, scaled (Eq. 5): ``(2 k_M . k_Q - |k_M|^2 - |k_Q|^2) / sqrt(Ck)``."""

    def scale(self, dim: int) -> float:
        return 2 / math.sqrt(dim)

    def bias(self, key: 'Tensor') -> 'Tensor':
        return key.square().sum(dim=-1) / -math.sqrt(key.shape[-1])


SIMILARITIES = {'l2': L2(), 'dot': Dot()}
"""Each similarity by the name that configurations and checkpoints have for it."""


def check_similarity(name: str) -> None:
    """Raises ``ValueError`` if there is no similarity of this name."""
    if name not in SIMILARITIES:
        raise ValueError(f'similarity: expected {" or ".join(map(repr, SIMILARITIES))}, found {name!r}')
