"""The similarities of keys that a memory read can use (Eq. 5 and Table 1), by name.

Without torch, so that a command line knows their names, too.
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Dot:
    """The scaled dot product of STM: ``S(k_M, k_Q) = k_M . k_Q / sqrt(Ck)``.

    Every similarity is of this form, ``scale(Ck) k_M . k_Q + bias(k_M)``, plus a term of ``k_Q`` alone that the
    softmax over the memory cancels. With the roles of the two keys exchanged, it is ``bias(k_Q)`` that counts.
    """

    def scale(self, dim: int) -> float:
        """The factor of the dot product, for keys of ``dim`` channels."""
        return 1 / math.sqrt(dim)

    def bias(self, key: 'Tensor') -> 'Tensor | None':
        """The term of one of the two keys, ``[..., N, Ck] -> [..., N]``; ``None`` where there is none."""
        return None


class L2(Dot):
    """The negative squared distance, scaled (Eq. 5): ``(2 k_M . k_Q - |k_M|^2 - |k_Q|^2) / sqrt(Ck)``."""

    def scale(self, dim: int) -> float:
        return 2 / math.sqrt(dim)

    def bias(self, key: 'Tensor') -> 'Tensor':
        return key.square().sum(dim=-1) / -math.sqrt(key.shape[-1])


SIMILARITIES = {'l2': L2(), 'dot': Dot()}
"""By the name that a configuration and a checkpoint have for it."""


def check_similarity(name: str) -> None:
    """Raises ValueError where there is no such similarity."""
    if name not in SIMILARITIES:
        raise ValueError(f'similarity: expected {" or ".join(map(repr, SIMILARITIES))}, found {name!r}')
