"""The base class of the networks: the interface that the core and the training use, and frozen batch norm.

A network has four functions, which serve training and inference alike; objects are a tensor dimension. Notation: B
batch, K objects, T memory frames, H W the image (multiples of 16), h w = H/16 W/16, Ck and Cv key and value channels.

    encode_query(image [B, 3, H, W])                          -> Query
    encode_memory(image, query, masks [B, K, H, W])           -> key [B, 1 or K, Ck, h, w], value [B, K, Cv, h, w]
    read(memory_key [B, 1 or K, Ck, T, h, w], memory_value [B, K, Cv, T, h, w], query) -> readout [B, K, Cv, h, w]
    decode(readout, query)                                    -> logits [B, K, H, W]

The sigmoid of a logit is the probability of that object alone. Images are ImageNet-normalised for every network.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model import memory
from model.strips import replace_blocks
from model.variants import STCNConfig, STMConfig
from model.winograd import replace_convolutions


class Query(NamedTuple):
    """The features of a frame that do not depend on masks; all of its objects share them."""

    key: Tensor  # [B, Ck, h, w]
    thin: Tensor  # [B, Cv, h, w], which the decoder gets beside the readout
    f16: Tensor  # backbone features at strides 16, 8 and 4
    f8: Tensor
    f4: Tensor


class Network(nn.Module, ABC):
    """The interface of :class:`model.STCN`, :class:`model.STM` and any other network for the core and the training.

    Batch norm always runs with frozen statistics, also in training (supplementary F.1).
    """

    shared_keys: bool  # whether a memory frame has one key for all of its objects
    # The core pads frames to multiples of 16:
    padding_colour: tuple[float, float, float] = (0, 0, 0)  # the colour of the padding in normalised RGB
    objects_in_padding: bool = True  # whether the padding of predicted masks is memorised as predicted, or as zeros
    # The names of the modules that run on every frame. Convolutions with many weights take more memory when they are
    # made faster, so those are made faster only in these modules.
    every_frame: tuple[str, ...] = ()
    exact: bool = True  # whether all its convolutions are direct; see optimize_
    recommended: Mapping[str, int] = MappingProxyType({})  # from its checkpoint; see model.checkpoint.RECOMMENDED

    def __init__(self, config: STCNConfig | STMConfig):
        super().__init__()
        self.config = config

    @abstractmethod
    def encode_query(self, image: Tensor) -> Query:
        """Compute the features and the key of a frame, without its objects. ``image [B, 3, H, W] -> Query``."""

    @abstractmethod
    def encode_memory(
        self,
        image: Tensor,
        query: Query,
        masks: Tensor,
        *,
        object_chunk: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the memory keys and values of a frame with given masks.

        ``image [B, 3, H, W], masks [B, K, H, W] in [0, 1] -> key [B, 1 or K, Ck, h, w], value [B, K, Cv, h, w]``;
        with ``shared_keys`` there is one key. ``query`` is the result of ``encode_query`` for the same frame.
        ``object_chunk`` bounds how many objects are encoded at a time.
        """

    @abstractmethod
    def decode(self, readout: Tensor, query: Query) -> Tensor:
        """Decode ``readout [B, K, Cv, h, w] -> logits [B, K, H, W]``, one for each pixel and object."""

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return next(self.parameters()).device

    @property
    def similarity(self) -> str:
        """The similarity of the memory read: a name in ``model.similarity.SIMILARITIES``."""
        return self.config.similarity

    def train(self, mode: bool = True) -> 'Network':
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def optimize_(self, *, exact: bool = False) -> 'Network':
        """Make this network faster for inference, in place, and return it. It can then not be trained or saved.

        Batch norm is folded into the convolutions before it, which changes results only by rounding. On a CPU the
        weights get the memory format in which convolutions need not reorder their inputs, and large blocks of a
        MobileNet compute in strips (:mod:`model.strips`). Unless ``exact``, 3x3 convolutions on a CPU use fewer
        multiplications, with larger rounding errors (:mod:`model.winograd`); those with many weights do so only in
        the modules of ``every_frame``.
        """
        fold_batch_norm(self)
        if self.device.type == 'cpu':
            if not exact:
                self.exact = False
                replace_convolutions(self, self.every_frame)
            # After replace_convolutions: copies of the weights that it replaces would leave gaps in memory.
            self.to(memory_format=torch.channels_last)
            replace_blocks(self)
        return self

    def compile_(self) -> 'Network':
        """Compile encoders and decoder (``torch.compile``) in place, and return this network.

        The memory read is not compiled, since the memory grows with every frame. The first few frame sizes and numbers
        of objects are compiled one by one; then torch compiles code for all of them.
        """
        for name in ('encode_query', 'encode_memory', 'decode'):
            setattr(self, name, torch.compile(getattr(self, name)))
        return self

    def read(self, memory_key: Tensor, memory_value: Tensor, query: Query) -> Tensor:
        """Read the memory with a full softmax, as training does; differentiable (Eq. 1 to 5).

        ``memory_key [B, 1 or K, Ck, T, h, w], memory_value [B, K, Cv, T, h, w] -> [B, K, Cv, h, w]``.
        """
        return memory.read_dense(memory_key, memory_value, query.key, metric=self.config.similarity)

    def widened(self, state: dict[str, Tensor], *, init: str) -> dict[str, Tensor]:
        """Make the state dict of the multi-object network from the state dict of this single-object one.

        The channel for the masks of the other objects gets new weights: ``init`` is ``'zeros'`` or ``'orthogonal'``.
        """
        raise NotImplementedError


def fold_batch_norm(module: nn.Module) -> None:
    """Fold every batch norm that follows a convolution, anywhere in ``module``, into this convolution."""
    before_name, before = '', None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            setattr(module, before_name, fuse_conv_bn_eval(before, child))
            setattr(module, name, nn.Identity())
        fold_batch_norm(child)
        before_name, before = name, child
