"""The baseline of the benchmarks: the straightforward formulation of the network, the memory and its read.

Objects share only the key, no batch norm is folded, and the memory is concatenated frame by frame. The read multiplies
a whole affinity matrix, which is zero except for the top k, with all values. The baseline
computes the same function as our network.
"""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from model.network import Network, Query
from model.stcn import STCN

log = logging.getLogger(__name__)


class StraightforwardSTCN(STCN):
    """An STCN in which every object goes through the value encoder and the decoder with its own features."""

    def encode_memory(
        self,
        image: Tensor,
        query: Query,
        masks: Tensor,
        *,
        object_chunk: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        others = masks.sum(dim=1, keepdim=True) - masks
        frames = self._of_every_object(image, masks)
        objects = torch.cat([frames, masks.flatten(0, 1).unsqueeze(1), others.flatten(0, 1).unsqueeze(1)], dim=1)
        f16, _, _ = self.value_encoder(objects)
        fuser = self.value_encoder.fuser
        x = fuser.block1(torch.cat([f16, self._of_every_object(query.f16, masks)], dim=1))
        x = fuser.block2(x if fuser.attention is None else x + fuser.attention(x))
        return query.key.unsqueeze(1), x.unflatten(0, masks.shape[:2])

    def decode(self, readout: Tensor, query: Query) -> Tensor:
        thin, f8, f4 = (self._of_every_object(each, readout) for each in (query.thin, query.f8, query.f4))
        decoder = self.decoder
        x = decoder.compress(torch.cat([readout.flatten(0, 1), thin], dim=1))
        for block, skip in ((decoder.up_16_8, f8), (decoder.up_8_4, f4)):
            upsampled = F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)
            x = block.out_conv(block.skip_conv(skip) + upsampled)
        logits = F.interpolate(decoder.pred(F.relu(x)), scale_factor=4, mode='bilinear', align_corners=False)
        return logits.unflatten(0, readout.shape[:2]).squeeze(2)

    @staticmethod
    def _of_every_object(features: Tensor, objects: Tensor) -> Tensor:
        """Repeat features for every object: ``features [B, C, h, w], objects [B, K, ...] -> [B*K, C, h, w]``."""
        return features.repeat_interleave(objects.shape[1], dim=0)


def comparable(network: Network) -> bool:
    """Whether this module has a straightforward formulation of the network. Logs a warning if not."""
    if isinstance(network, STCN) and network.similarity == 'l2' and not network.config.single_object:
        return True
    log.warning(
        'nothing to compare with: expected an STCN of several objects and L2 similarity, found %s', network.config
    )
    return False


def straightforward(network: STCN) -> StraightforwardSTCN:
    """The same network in the straightforward formulation, with a copy of its weights."""
    other = StraightforwardSTCN(network.config).train(network.training)
    other.load_state_dict(network.state_dict())
    return other.to(next(network.parameters()).device)


class ConcatenatedMemory:
    """Replaces a core's ``MemoryBank``. All objects join at the first frame, and all memory frames are permanent."""

    def __init__(self, *, top_k: int | None):
        self.top_k = top_k
        self.keys: Tensor | None = None  # [N, Ck]: positions are rows, which is fastest for this read
        self.values: Tensor | None = None  # [N, K, Cv]

    def add(self, key: Tensor, value: Tensor, *, permanent: bool = True, protected: bool = False) -> None:
        """Memorise a frame, ``key [1, Ck, h, w], value [K, Cv, h, w]``."""
        key, value = key[0].flatten(1).T, value.flatten(2).permute(2, 0, 1)
        self.keys = key.contiguous() if self.keys is None else torch.cat([self.keys, key])
        self.values = value.contiguous() if self.values is None else torch.cat([self.values, value])

    def read(self, query_key: Tensor) -> Tensor:
        """Read the memory, ``query_key [Ck, h, w] -> [K, Cv, h, w]``."""
        readout = dense_read(self.keys, self.values.flatten(1), query_key.flatten(1).T, top_k=self.top_k)
        return readout.T.reshape(*self.values.shape[1:], *query_key.shape[1:])


def dense_read(keys: Tensor, values: Tensor, query_key: Tensor, *, top_k: int | None) -> Tensor:
    """Read densely: ``keys [N, Ck], values [N, K * Cv], query_key [Q, Ck] -> [Q, K * Cv]``; ``top_k=None``: all N."""
    similarity = (2 * query_key @ keys.T - keys.square().sum(dim=1)) / query_key.shape[1] ** 0.5
    best, indices = similarity.topk(min(top_k or len(keys), len(keys)), dim=1)
    affinity = torch.zeros_like(similarity).scatter_(1, indices, best.softmax(dim=1))
    return affinity @ values
