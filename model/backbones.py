"""Image backbones: torchvision classifiers cut at stride 16, with a table to name them.

A backbone turns ``[B, C, H, W]`` into features at strides 16, 8 and 4. For the value encoder,
torchvision's networks get extra input channels for the masks, and a bias in every convolution.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from model.modules import add_shared, geometry


class Features(nn.Module, ABC):
    """A classifier up to stride 16: ``[B, C, H, W] -> (f16, f8, f4)``, its features at strides 16, 8 and 4."""

    @property
    @abstractmethod
    def input_conv(self) -> nn.Conv2d:
        """The first convolution."""

    @abstractmethod
    def after_input(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Everything after ``input_conv``; ``x`` is the output of ``input_conv``."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.after_input(self.input_conv(x))


class ResNetFeatures(Features):
    """A torchvision ResNet up to the end of ``layer3``.

    ``layers`` renames its three layers: the published networks call some of them after the paper's tables (``res2``).
    """

    def __init__(
        self,
        network: torchvision.models.ResNet,
        *,
        layers: tuple[str, str, str] = ('layer1', 'layer2', 'layer3'),
    ):
        super().__init__()
        self.conv1 = network.conv1
        self.bn1 = network.bn1
        self.relu = network.relu
        self.maxpool = network.maxpool
        self.layers = layers
        for name, layer in zip(layers, (network.layer1, network.layer2, network.layer3), strict=True):
            self.add_module(name, layer)

    @property
    def input_conv(self) -> nn.Conv2d:
        return self.conv1

    def after_input(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        layer1, layer2, layer3 = (self.get_submodule(name) for name in self.layers)
        f4 = layer1(self.maxpool(self.relu(self.bn1(x))))
        f8 = layer2(f4)
        f16 = layer3(f8)
        return f16, f8, f4


class StridedDepthwise(nn.Conv2d):
    """A depthwise convolution with a stride or a dilation, which trains fast in mixed precision on a CPU.

    oneDNN computes the gradients of such convolutions slowly in bfloat16 but fast in float32; in bfloat16 they took a
    quarter of a training step. So in mixed precision on a CPU it is computed in float32, and the result is rounded.
    """

    @classmethod
    def like(cls, conv: nn.Conv2d) -> 'StridedDepthwise':
        """The same convolution, with the same parameters."""
        with torch.device('meta'):
            new = cls(conv.in_channels, conv.out_channels, groups=conv.groups, bias=False, **geometry(conv))
        new.weight = conv.weight
        return new

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.device.type == 'cpu' and torch.is_autocast_enabled('cpu')):
            return super().forward(x)
        with torch.autocast('cpu', enabled=False):
            return super().forward(x.float()).to(x.dtype)


class MobileNetV2Features(Features):
    """A torchvision MobileNetV2 up to its last block of stride 16 (``features[13]``)."""

    def __init__(self, network: torchvision.models.MobileNetV2, *, layers: tuple[str, ...] = ()):
        super().__init__()
        self.to_f4 = network.features[:4]
        self.to_f8 = network.features[4:7]
        self.to_f16 = network.features[7:14]
        self.replace_strided()

    def replace_strided(self) -> None:
        """Give the depthwise convolutions that are strided or dilated a faster gradient."""
        for module in list(self.modules()):
            for name, conv in list(module.named_children()):
                if not isinstance(conv, nn.Conv2d) or conv.groups != conv.in_channels:
                    continue
                if (conv.stride, conv.dilation) != ((1, 1), (1, 1)):
                    setattr(module, name, StridedDepthwise.like(conv))

    @property
    def input_conv(self) -> nn.Conv2d:
        return self.to_f4[0][0]

    def after_input(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (_, norm, activation), *blocks = self.to_f4
        f4 = activation(norm(x))
        for block in blocks:
            f4 = block(f4)
        f8 = self.to_f8(f4)
        f16 = self.to_f16(f8)
        return f16, f8, f4


class DilatedMobileNetV2Features(MobileNetV2Features):
    """A torchvision MobileNetV2 up to ``features[16]``, with dilation in place of its last stride.

    The three blocks of stride 32 work at stride 16 with the same weights. They see more of the image around each
    position than the blocks before, which helps to tell objects apart.
    """

    def __init__(self, network: torchvision.models.MobileNetV2, *, layers: tuple[str, ...] = ()):
        super().__init__(network)
        first, *rest = (block.conv[1][0] for block in network.features[14:17])  # depthwise convolutions
        first.stride = (1, 1)
        for conv in rest:
            conv.dilation = conv.padding = (2, 2)
        self.to_f16 = network.features[7:17]
        self.replace_strided()


@dataclass(frozen=True)
class Backbone:
    classifier: Callable[..., nn.Module]
    features: Callable[..., Features]
    channels: tuple[int, int, int]  # of f16, f8, f4


BACKBONES = {
    'resnet18': Backbone(torchvision.models.resnet18, ResNetFeatures, (256, 128, 64)),
    'resnet34': Backbone(torchvision.models.resnet34, ResNetFeatures, (256, 128, 64)),
    'resnet50': Backbone(torchvision.models.resnet50, ResNetFeatures, (1024, 512, 256)),
    'resnet101': Backbone(torchvision.models.resnet101, ResNetFeatures, (1024, 512, 256)),
    'wide_resnet50_2': Backbone(torchvision.models.wide_resnet50_2, ResNetFeatures, (1024, 512, 256)),
    'mobilenet_v2': Backbone(torchvision.models.mobilenet_v2, MobileNetV2Features, (96, 32, 24)),
    'mobilenet_v2_dilated': Backbone(torchvision.models.mobilenet_v2, DilatedMobileNetV2Features, (160, 32, 24)),
}


def build_backbone(
    name: str,
    *,
    mask_channels: int = 0,
    biased: bool = False,
    layers: tuple[str, str, str] = ('layer1', 'layer2', 'layer3'),
    weights: Mapping[str, Tensor] | None = None,
) -> Features:
    """The named backbone, ``forward: [B, 3 + mask_channels, H, W] -> (f16, f8, f4)``.

    Args:
        mask_channels: input channels after the image's three, with orthogonal weights.
        biased: give every convolution a bias (zero at first, so that ImageNet weights keep
            their meaning), as the published value encoder has.
        layers: names for the layers of a ResNet.
        weights: state dict of the torchvision classifier (``model.pretrained``); random by default.

    Raises:
        KeyError: an unknown name.
    """
    backbone = BACKBONES[name]
    classifier = backbone.classifier(weights=None)
    if weights is not None:
        classifier.load_state_dict(weights)
    features = backbone.features(classifier, layers=layers)
    if mask_channels:
        widen_input(features.input_conv, mask_channels)
    if biased:
        for module in features.modules():
            if isinstance(module, nn.Conv2d) and module.bias is None:
                module.bias = nn.Parameter(torch.zeros(module.out_channels, device=module.weight.device))
    return features


def encode_objects(
    backbone: Features,
    of_frame: Tensor,
    mask_weight: Tensor,
    masks: Tensor,
    *,
    object_chunk: int | None = None,
) -> Iterator[Tensor]:
    """Yield the features of a frame's objects at stride 16: ``[B, k, C, h, w]`` for each chunk of k objects.

    The first convolution is linear. So its output is a part that all objects share plus a part of each object.

    Args:
        of_frame: [B, C, H/2, W/2], the part that all objects share.
        mask_weight: [C, 1, 7, 7], for a MobileNet [C, 1, 3, 3]: the weights for an object's own mask.
        masks: [B, K, H, W].
        object_chunk: the largest number of objects in a chunk; ``None`` for all of them.
    """
    conv = backbone.input_conv
    for part in [masks] if object_chunk is None else masks.split(object_chunk, dim=1):
        of_masks = F.conv2d(part.flatten(0, 1).unsqueeze(1), mask_weight, None, conv.stride, conv.padding)
        f16, _, _ = backbone.after_input(add_shared(of_masks, of_frame))
        yield f16.unflatten(0, (len(part), -1))


def widen_input(conv: nn.Conv2d, channels: int) -> None:
    """Append input channels to a convolution, in place, with orthogonal weights."""
    conv.weight = nn.Parameter(append_input_channels(conv.weight.detach(), channels, init='orthogonal'))
    conv.in_channels += channels


def append_input_channels(weight: Tensor, channels: int, *, init: str) -> Tensor:
    """``[O, I, k, k] -> [O, I + channels, k, k]``, the new ones ``'orthogonal'`` or ``'zeros'``."""
    return torch.cat([weight, new_input_channels(weight, channels, init=init)], dim=1)


def new_input_channels(weight: Tensor, channels: int, *, init: str) -> Tensor:
    """``[O, I, k, k] -> [O, channels, k, k]``: weights for additional input channels."""
    extra = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:], dtype=torch.float32)
    if init == 'orthogonal':
        nn.init.orthogonal_(extra)
    return extra.to(weight.dtype)
