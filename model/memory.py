"""The memory read as pure functions: similarity -> weights -> readout (Eq. 1 to 5, Algorithm 1).

Positions are rows: N = T h w memory positions, Q = h w query positions. G is 1 where all objects
share their keys (STCN) and K where every object has its own (STM).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.similarity import SIMILARITIES

MANY_FRAMES = 4  # in a memory of this many frames or more, the largest similarities are found in two steps


def similarity(
    memory_key: Tensor,
    query_key: Tensor,
    *,
    metric: str,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Scaled similarity of every query position to every memory position, one fused product (Eq. 5).

    The term that depends on the query alone is left out, since the softmax cancels it. So for ``'l2'`` it is
    ``(2 k_M . k_Q - |k_M|^2) / sqrt(Ck)``.

    ``memory_key [G, N, Ck], query_key [1 or G, Q, Ck] -> [G, Q, N]``; ``metric`` is a name in ``SIMILARITIES``.
    ``bias [G, N]`` is the term that depends on the memory keys alone. The memory bank computes it once for each frame
    and gives it here; if it is not given, it is computed.
    """
    query_key = query_key.expand(memory_key.shape[0], -1, -1)
    chosen = SIMILARITIES[metric]
    scale = chosen.scale(memory_key.shape[-1])
    if bias is None:
        bias = chosen.bias(memory_key)
    if bias is None:
        bias = memory_key.new_zeros(())
        return torch.baddbmm(bias, query_key, memory_key.transpose(1, 2), beta=0, alpha=scale, out=out)
    return torch.baddbmm(bias.unsqueeze(1), query_key, memory_key.transpose(1, 2), alpha=scale, out=out)


def best_query(memory_key: Tensor, query_key: Tensor, *, metric: str, out: Tensor | None = None) -> Tensor:
    """The query position that each memory position is most similar to, where its kernel is centred.

    Here query positions are compared for one memory position, so the two keys exchange their roles. In the L2
    distance, ``|k_Q|^2`` counts and ``|k_M|^2``, the same for all query positions, does not. With the dot product it
    is the position with the largest ``k_M . k_Q``, as in the paper of the kernel (Seong et al., ECCV 2020).

    ``memory_key [G, N, Ck], query_key [1 or G, Q, Ck] -> [G, N]`` int64; ``out [G, N, Q]`` is a buffer that the
    similarities are written to.
    """
    query_key = query_key.expand(len(memory_key), -1, -1)
    return similarity(query_key, memory_key, metric=metric, out=out).argmax(dim=-1)


def add_kernel(similarity: Tensor, best: Tensor, positions: Tensor, *, width: int, sigma: float) -> Tensor:
    """The kernelised read: weights each memory position by a Gaussian around its best query position. In place.

    The logarithm of the Gaussian g is added to the similarities S: ``S - |p - p_best|^2 / (2 sigma^2)``, with ``p`` in
    steps of the stride-16 grid. So softmax and top-k are those of ``exp(S) g``, which itself could overflow.

    ``similarity [G, Q, N], best [G, N]`` from :func:`best_query`, ``positions [Q]``: which query positions these are,
    row by row in a grid of this ``width``.
    """
    for query, centre in ((positions // width, best // width), (positions % width, best % width)):
        distance = query.to(similarity.dtype)[:, None] - centre.to(similarity.dtype)[:, None, :]  # [G, Q, N]
        similarity.addcmul_(distance, distance, value=-0.5 / sigma**2)
    return similarity


def top_k_weights(similarity: Tensor, top_k: int, *, frames: int = 1) -> tuple[Tensor, Tensor]:
    """Softmax over the ``min(top_k, N)`` most similar memory positions of each query position.

    ``similarity [G, Q, N] -> weights [G, Q, k], indices [G, Q, k]``. ``softmax`` subtracts the
    maximum, so that large similarities cannot overflow. ``frames`` is T in N = T h w, and only changes the speed.
    """
    values, indices = _top_k(similarity, min(top_k, similarity.shape[-1]), frames)
    return values.softmax(dim=-1), indices


def _top_k(similarity: Tensor, k: int, frames: int) -> tuple[Tensor, Tensor]:
    """The k largest of N, exactly. For a long memory this takes half the time of a single selection.

    A place is one of the h w positions; it has T similarities, one for each memory frame. The k places with the
    largest maxima are chosen first, then the k largest of their k T similarities. No other place can have one of the k
    largest, since all of its similarities are at most as large as each of the k maxima.
    """
    places = similarity.shape[-1] // frames
    if frames < MANY_FRAMES or k >= places:
        return similarity.topk(k, dim=-1)
    similarity = similarity.unflatten(-1, (frames, places))  # [G, Q, T, h w]
    best = similarity.amax(dim=-2).topk(k, dim=-1, sorted=False).indices  # [G, Q, k]
    candidates = similarity.gather(-1, best.unsqueeze(-2).expand(*best.shape[:-1], frames, k))
    values, chosen = candidates.flatten(-2).topk(k, dim=-1)
    return values, chosen.div(k, rounding_mode='floor') * places + best.gather(-1, chosen % k)


def read_sparse(weights: Tensor, indices: Tensor, memory_value: Tensor) -> Tensor:
    """Weighted sum of the chosen rows only. ``weights, indices [Q, k], memory_value [N, C] -> [Q, C]``."""
    return F.embedding_bag(indices, memory_value, mode='sum', per_sample_weights=weights.to(memory_value.dtype))


def read_dense(memory_key: Tensor, memory_value: Tensor, query_key: Tensor, *, metric: str) -> Tensor:
    """Softmax over the whole memory, differentiable: the read of training.

    ``memory_key [B, 1 or K, Ck, T, h, w], memory_value [B, K, Cv, T, h, w], query_key [B, Ck, h, w]
    -> [B, K, Cv, h, w]``; ``metric`` is a name in ``SIMILARITIES``. Computed in float32, since it squares keys.
    """
    B, K, Cv = memory_value.shape[:3]
    h, w = query_key.shape[-2:]
    with torch.autocast(query_key.device.type, enabled=False):
        keys = memory_key.float().flatten(3).mT.flatten(0, 1)  # [B*G, N, Ck]
        query = query_key.float().flatten(2).mT  # [B, Q, Ck]
        query = query.repeat_interleave(memory_key.shape[1], dim=0)
        weights = similarity(keys, query, metric=metric).softmax(dim=-1)  # [B*G, Q, N]
    weights = weights.to(memory_value.dtype).unflatten(0, (B, -1))
    if memory_key.shape[1] == 1:  # one product for all objects
        values = memory_value.flatten(1, 2).flatten(2)  # [B, K*Cv, N]
        readout = values @ weights[:, 0].mT
    else:
        readout = memory_value.flatten(3) @ weights.mT
    return readout.reshape(B, K, Cv, h, w)
