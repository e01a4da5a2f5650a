"""The Space-Time Correspondence Network: one module for training and inference."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones import BACKBONES, append_input_channels, build_backbone, encode_objects
from model.decoder import Decoder
from model.fusion import FeatureFusion
from model.modules import ASPP, init_keys_
from model.network import Network, Query
from model.variants import STCNConfig


class KeyProjection(nn.Module):
    """The 3x3 convolution from features to keys; orthogonal weights, zero bias."""

    def __init__(self, in_channels: int, key_dim: int):
        super().__init__()
        self.key_proj = nn.Conv2d(in_channels, key_dim, 3, padding=1)
        init_keys_(self.key_proj)

    def forward(self, f16: Tensor) -> Tensor:
        return self.key_proj(f16)


class STCN(Network):
    """Key encoder, value encoder and decoder around a space-time memory; see ``model.network`` for the notation.

    Module names are those of the published checkpoints.
    """

    config: STCNConfig
    shared_keys = True
    every_frame = ('key_comp', 'decoder')

    def __init__(
        self,
        config: STCNConfig | None = None,
        *,
        backbone_weights: Mapping[str, Mapping[str, Tensor]] | None = None,
    ):
        """``backbone_weights``: a state dict for each backbone's name (``model.pretrained``); random by default."""
        config, weights = config or STCNConfig(), backbone_weights or {}
        super().__init__(config)
        key16, key8, key4 = BACKBONES[config.key_backbone].channels
        value16 = BACKBONES[config.value_backbone].channels[0]

        self.key_encoder = build_backbone(
            config.key_backbone, layers=('res2', 'layer2', 'layer3'), weights=weights.get(config.key_backbone)
        )
        # Where features at stride 16 are used, those after the ASPP are meant.
        self.aspp: nn.Module = nn.Identity()
        if config.aspp_dim is not None:
            self.aspp = ASPP(key16, config.aspp_dim)
            key16 = config.aspp_dim
        self.value_encoder = build_backbone(
            config.value_backbone,
            mask_channels=1 if config.single_object else 2,
            biased=True,
            weights=weights.get(config.value_backbone),
        )
        # The fusion is a part of the value encoder, as in the published layout.
        fuser = FeatureFusion(value16, key16, config.value_dim, attention=config.fusion_attention)
        self.value_encoder.add_module('fuser', fuser)
        self.key_proj = KeyProjection(key16, config.key_dim)
        self.key_comp = nn.Conv2d(key16, config.value_dim, 3, padding=1)
        self.decoder = Decoder(value_dim=config.value_dim, skip_channels=(key8, key4), widths=config.decoder_widths)

    def encode_query(self, image: Tensor) -> Query:
        """Features and key of a frame. ``image [B, 3, H, W] -> Query``."""
        f16, f8, f4 = self.key_encoder(image)
        f16 = self.aspp(f16)
        return Query(self.key_proj(f16), self.key_comp(f16), f16, f8, f4)

    def encode_memory(
        self,
        image: Tensor,
        query: Query,
        masks: Tensor,
        *,
        object_chunk: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Memory key and values of a frame whose objects are given.

        ``image [B, 3, H, W], masks [B, K, H, W] in [0, 1] -> key [B, 1, Ck, h, w], value [B, K, Cv, h, w]``.
        The key is the frame's query key, one for all objects: that is what makes it an STCN.
        ``object_chunk`` bounds how many objects are encoded at a time.
        """
        # The first convolution takes an object's mask m and the others' masks, which are the sum of all minus m. It is
        # linear, so its output for the sum is computed once and serves all objects.
        conv = self.value_encoder.input_conv
        shared, own_weight, shared_weight = image, conv.weight[:, 3:4], conv.weight[:, :3]
        if not self.config.single_object:
            of_others = conv.weight[:, 4:]
            shared = torch.cat([image, masks.sum(dim=1, keepdim=True)], dim=1)
            own_weight, shared_weight = own_weight - of_others, torch.cat([shared_weight, of_others], dim=1)
        of_frame = F.conv2d(shared, shared_weight, conv.bias, conv.stride, conv.padding)
        features = encode_objects(self.value_encoder, of_frame, own_weight, masks, object_chunk=object_chunk)
        fuser = self.value_encoder.get_submodule('fuser')
        values = [fuser(f16, query.f16) for f16 in features]
        return query.key.unsqueeze(1), values[0] if len(values) == 1 else torch.cat(values, dim=1)

    def decode(self, readout: Tensor, query: Query) -> Tensor:
        """``readout [B, K, Cv, h, w] -> logits [B, K, H, W]``, one for each object and pixel."""
        return self.decoder(readout, query.thin, query.f8, query.f4)

    def widened(self, state: dict[str, Tensor], *, init: str) -> dict[str, Tensor]:
        weight = self.value_encoder.input_conv.weight
        name = next(name for name, parameter in self.named_parameters() if parameter is weight)
        return state | {name: append_input_channels(state[name], 1, init=init)}
