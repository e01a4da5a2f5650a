"""What the networks have in common: the seam between a network and the core, and frozen batch norm.

A network has four functions, for training and for inference; objects are a dimension. Notation: B batch, K objects,
T memory frames, H W the image (multiples of 16), h w = H/16 W/16, Ck and Cv the key and value channels.

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
    """What a network knows of a frame without looking at masks; serves all of its objects."""

    key: Tensor  # [B, Ck, h, w]
    thin: Tensor  # [B, Cv, h, w], the decoder's half of the input
    f16: Tensor  # backbone features at strides 16, 8 and 4
    f8: Tensor
    f4: Tensor


class Network(nn.Module, ABC):
    """What the core and the training ask of :class:`model.STCN`, :class:`model.STM` and any other network.

    Batch norm always runs with frozen statistics, in training too (supplementary F.1).
    """

    shared_keys: bool  # whether a memory frame has one key for all of its objects
    # The core pads frames to multiples of 16. Of those pixels:
    padding_colour: tuple[float, float, float] = (0, 0, 0)  # normalised RGB
    objects_in_padding: bool = True  # whether they may belong to an object in the memory, as predicted
    # What works on every frame, by the names of its modules: for the others, faster convolutions with many weights are
    # not worth their memory.
    every_frame: tuple[str, ...] = ()
    exact: bool = True  # whether its convolutions are the direct ones; see optimize_
    recommended: Mapping[str, int] = MappingProxyType({})  # by its checkpoint; see model.checkpoint.RECOMMENDED

    def __init__(self, config: STCNConfig | STMConfig):
        super().__init__()
        self.config = config

    @abstractmethod
    def encode_query(self, image: Tensor) -> Query:
        """Features and key of a frame, without its objects. ``image [B, 3, H, W] -> Query``."""

    @abstractmethod
    def encode_memory(
        self,
        image: Tensor,
        query: Query,
        masks: Tensor,
        *,
        object_chunk: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Memory keys and values of a frame whose objects are given.

        ``image [B, 3, H, W], masks [B, K, H, W] in [0, 1] -> key [B, 1 or K, Ck, h, w], value [B, K, Cv, h, w]``;
        one key where ``shared_keys``. ``query`` is that of the frame. ``object_chunk`` bounds how many objects are
        encoded at a time.
        """

    @abstractmethod
    def decode(self, readout: Tensor, query: Query) -> Tensor:
        """``readout [B, K, Cv, h, w] -> logits [B, K, H, W]``, one a pixel and object."""

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(self.parameters()).device

    @property
    def similarity(self) -> str:
        """Of the memory read: a name in ``model.similarity.SIMILARITIES``."""
        return self.config.similarity

    def train(self, mode: bool = True) -> 'Network':
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def optimize_(self, *, exact: bool = False) -> 'Network':
        """Make this network faster for inference, in place, and return it; it cannot be trained or saved any more.

        Batch norm is folded into the convolutions before it: exact but for rounding. On a CPU the weights get the
        memory format in which convolutions run without reordering their inputs, a MobileNet's large blocks compute in
        strips (:mod:`model.strips`), and unless ``exact``, 3x3 convolutions take fewer multiplications
        (:mod:`model.winograd`), which rounds more: those with many weights in the parts of ``every_frame`` alone.
        """
        fold_batch_norm(self)
        if self.device.type == 'cpu':
            self.to(memory_format=torch.channels_last)
            replace_blocks(self)
            if not exact:
                self.exact = False
                replace_convolutions(self, self.every_frame)
        return self

    def compile_(self) -> 'Network':
        """Compile encoders and decoder (``torch.compile``) in place, and return this network.

        The memory is not: it grows, they do not. Each size of a frame and number of objects compiles anew at first,
        then torch makes code for all of them.
        """
        for name in ('encode_query', 'encode_memory', 'decode'):
            setattr(self, name, torch.compile(getattr(self, name)))
        return self

    def read(self, memory_key: Tensor, memory_value: Tensor, query: Query) -> Tensor:
        """The full-softmax read of training, differentiable (Eq. 1 to 5).

        ``memory_key [B, 1 or K, Ck, T, h, w], memory_value [B, K, Cv, T, h, w] -> [B, K, Cv, h, w]``.
        """
        return memory.read_dense(memory_key, memory_value, query.key, metric=self.config.similarity)

    def widened(self, state: dict[str, Tensor], *, init: str) -> dict[str, Tensor]:
        """The state dict of the multi-object network from that of this single-object one.

        The weights of the channel of the other objects' masks are new: ``init`` is ``'zeros'`` or ``'orthogonal'``.
        """
        raise NotImplementedError


def fold_batch_norm(module: nn.Module) -> None:
    """Replace each convolution that batch norm follows, anywhere below ``module``, by one that does both."""
    before_name, before = '', None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            setattr(module, before_name, fuse_conv_bn_eval(before, child))
            setattr(module, name, nn.Identity())
        fold_batch_norm(child)
        before_name, before = name, child
