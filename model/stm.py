"""The Space-Time Memory network (Oh et al., ICCV 2019), the baseline: one module for training and inference."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones import BACKBONES, Features, build_backbone, encode_objects, new_input_channels
from model.image import IMAGE_MEAN, IMAGE_STD
from model.modules import ResBlock, conv_shared, geometry, init_keys_, upsample_and_add
from model.network import Network, Query
from model.variants import STMConfig


class KeyValue(nn.Module):
    """3x3 convolutions from features to keys and values. The one for keys is initialised as in STCN."""

    def __init__(self, in_channels: int, key_dim: int, value_dim: int):
        super().__init__()
        self.Key = nn.Conv2d(in_channels, key_dim, 3, padding=1)
        self.Value = nn.Conv2d(in_channels, value_dim, 3, padding=1)
        init_keys_(self.Key)

    def forward(self, f16: Tensor) -> tuple[Tensor, Tensor]:
        return self.Key(f16), self.Value(f16)


class Refinement(nn.Module):
    """Doubles the resolution: adds a ResBlock of the skip connection to the upsampled input, then applies another."""

    def __init__(self, skip_channels: int, width: int):
        super().__init__()
        self.convFS = nn.Conv2d(skip_channels, width, 3, padding=1)
        self.ResFS = ResBlock(width, width)
        self.ResMM = ResBlock(width, width)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        """``skip [B, S, 2h, 2w], x [B*K, C, h, w] -> [B*K, C, 2h, 2w]``; the skip serves all K objects."""
        return self.ResMM(upsample_and_add(x, self.ResFS(self.convFS(skip))))


class STMDecoder(nn.Module):
    """Readout and query value -> two channels, background and object, at stride 4, then bilinear to the full size."""

    def __init__(self, *, value_dim: int, skip_channels: tuple[int, int], width: int):
        super().__init__()
        skip8, skip4 = skip_channels
        self.convFM = nn.Conv2d(2 * value_dim, width, 3, padding=1)
        self.ResMM = ResBlock(width, width)
        self.RF3 = Refinement(skip8, width)
        self.RF2 = Refinement(skip4, width)
        self.pred2 = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, readout: Tensor, value: Tensor, f8: Tensor, f4: Tensor) -> Tensor:
        """``readout [B, K, Cv, h, w], value [B, Cv, h, w], f8, f4 -> logits [B, K, 16 h, 16 w]``.

        A softmax over two channels equals the sigmoid of their difference, which is thus the logit of the object.
        Upsampling is linear, so only the difference is upsampled.
        """
        x = self.ResMM(conv_shared(self.convFM, readout.flatten(0, 1), value))
        x = self.RF3(f8, x)
        x = self.RF2(f4, x)
        background, object_ = self.pred2(F.relu(x)).chunk(2, dim=1)
        logits = F.interpolate(object_ - background, scale_factor=4, mode='bilinear', align_corners=False)
        return logits.unflatten(0, (len(readout), -1)).squeeze(2)


class STM(Network):
    """Query encoder, memory encoder and decoder around a space-time memory.

    Every object of a memory frame has its own key: the masks enter the memory encoder together with the image. See
    ``model.network`` for the notation. Module names are those of the published checkpoint.

    The published network takes RGB in [0, 1] and normalises it by the buffers ``mean`` and ``std`` of each encoder.
    This one takes images that are normalised for ImageNet, as all networks here do. It converts them if the buffers
    differ from ImageNet's values, which they do in no published file. Frames are padded with black before they are
    normalised. Predicted masks are cropped to the frame, and padded again when they become memory.
    """

    config: STMConfig
    shared_keys = False
    every_frame = ('KV_Q_r4', 'Decoder')
    # Black.
    padding_colour = (-IMAGE_MEAN[0] / IMAGE_STD[0], -IMAGE_MEAN[1] / IMAGE_STD[1], -IMAGE_MEAN[2] / IMAGE_STD[2])
    objects_in_padding = False

    def __init__(
        self,
        config: STMConfig | None = None,
        *,
        backbone_weights: Mapping[str, Mapping[str, Tensor]] | None = None,
    ):
        """``backbone_weights``: backbone's name -> state dict (``model.pretrained``); random by default."""
        config, weights = config or STMConfig(), backbone_weights or {}
        super().__init__(config)
        query16, query8, query4 = BACKBONES[config.query_backbone].channels
        memory16 = BACKBONES[config.memory_backbone].channels[0]

        self.Encoder_M = _encoder(config.memory_backbone, weights)
        self.Encoder_M.add_module('conv1_m', _mask_conv(self.Encoder_M.input_conv))
        if not config.single_object:
            self.Encoder_M.add_module('conv1_o', _mask_conv(self.Encoder_M.input_conv))
        self.Encoder_Q = _encoder(config.query_backbone, weights)
        self.KV_M_r4 = KeyValue(memory16, config.key_dim, config.value_dim)
        self.KV_Q_r4 = KeyValue(query16, config.key_dim, config.value_dim)
        self.Decoder = STMDecoder(
            value_dim=config.value_dim, skip_channels=(query8, query4), width=config.decoder_width
        )

    def encode_query(self, image: Tensor) -> Query:
        """Features, key and value (in the field ``thin``) of a frame. ``image [B, 3, H, W] -> Query``."""
        f16, f8, f4 = self.Encoder_Q(_normalised(image, self.Encoder_Q))
        key, value = self.KV_Q_r4(f16)
        return Query(key, value, f16, f8, f4)

    def encode_memory(
        self,
        image: Tensor,
        query: Query,
        masks: Tensor,
        *,
        object_chunk: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Memory keys and values of a frame whose objects are given; STM does not use ``query``.

        ``image [B, 3, H, W], masks [B, K, H, W] in [0, 1] -> key [B, K, Ck, h, w], value [B, K, Cv, h, w]``.
        ``object_chunk`` bounds how many objects are encoded at a time.
        """
        # The others' mask is the sum of all masks minus the object's own, so one convolution of the sum serves all
        # objects, as in STCN.
        encoder = self.Encoder_M
        own_weight: Tensor = encoder.get_parameter('conv1_m.weight')
        of_frame = encoder.input_conv(_normalised(image, encoder))
        if not self.config.single_object:
            of_frame = of_frame + encoder.get_submodule('conv1_o')(masks.sum(dim=1, keepdim=True))
            own_weight = own_weight - encoder.get_parameter('conv1_o.weight')
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for f16 in encode_objects(encoder, of_frame, own_weight, masks, object_chunk=object_chunk):
            for found, each in zip((keys, values), self.KV_M_r4(f16.flatten(0, 1)), strict=True):
                found.append(each.unflatten(0, (len(f16), -1)))
        return (keys[0], values[0]) if len(keys) == 1 else (torch.cat(keys, dim=1), torch.cat(values, dim=1))

    def decode(self, readout: Tensor, query: Query) -> Tensor:
        """``readout [B, K, Cv, h, w] -> logits [B, K, H, W]``, one for each object and pixel."""
        return self.Decoder(readout, query.thin, query.f8, query.f4)

    def widened(self, state: dict[str, Tensor], *, init: str) -> dict[str, Tensor]:
        new = new_input_channels(state['Encoder_M.conv1_m.weight'], 1, init=init)
        return state | {'Encoder_M.conv1_o.weight': new}


def _encoder(backbone: str, weights: Mapping[str, Mapping[str, Tensor]]) -> Features:
    """A backbone with the mean and std of its normalisation as buffers."""
    encoder = build_backbone(backbone, layers=('res2', 'res3', 'res4'), weights=weights.get(backbone))
    encoder.register_buffer('mean', torch.tensor(IMAGE_MEAN)[None, :, None, None])
    encoder.register_buffer('std', torch.tensor(IMAGE_STD)[None, :, None, None])
    return encoder


def _mask_conv(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution of a mask, whose output is added to that of ``conv``: no bias, orthogonal initial weights."""
    mask_conv = nn.Conv2d(1, conv.out_channels, bias=False, **geometry(conv))
    nn.init.orthogonal_(mask_conv.weight)
    return mask_conv


def _normalised(image: Tensor, encoder: Features) -> Tensor:
    """The image, normalised by the encoder's own mean and std instead of ImageNet's; unchanged if these are equal."""
    mean, std = (image.new_tensor(each)[:, None, None] for each in (IMAGE_MEAN, IMAGE_STD))
    own_mean, own_std = encoder.get_buffer('mean'), encoder.get_buffer('std')
    return image * (std / own_std) + (mean - own_mean) / own_std
