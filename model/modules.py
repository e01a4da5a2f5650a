"""Building blocks of the networks."""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from model.winograd import WinogradConv2d


def add_shared(own: Tensor, shared: Tensor) -> Tensor:
    """Add ``shared [B, C, h, w]``, which all K objects share, to ``own [B*K, C, h, w]``, in place."""
    return own.unflatten(0, (len(shared), -1)).add_(shared.unsqueeze(1)).flatten(0, 1)


def upsample_and_add(x: Tensor, skip: Tensor) -> Tensor:
    """Upsample ``x [B*K, C, h, w]`` by two and add ``skip [B, C, 2h, 2w]``, which all K objects share."""
    return add_shared(F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False), skip)


def relu_conv(conv: nn.Conv2d | WinogradConv2d, x: Tensor) -> Tensor:
    """Apply ReLU, then ``conv``."""
    return conv(x, relu=True) if isinstance(conv, WinogradConv2d) else conv(F.relu(x))


def conv_shared(conv: nn.Conv2d | WinogradConv2d, own: Tensor, shared: Tensor, *, relu: bool = False) -> Tensor:
    """Apply ``conv`` to the channels of ``own [B*K, I, h, w]`` followed by ``shared [B, S, h, w] -> [B*K, O, h, w]``.

    Convolution is linear, so the channels that K objects share are convolved once. With ``relu``, ReLU comes first.
    """
    if isinstance(conv, WinogradConv2d):
        of_own, of_shared = conv.split(own.shape[1], relu=relu)
        return add_shared(of_own(own), of_shared(shared))
    if relu:
        own, shared = F.relu(own), F.relu(shared)
    own_weight, shared_weight = conv.weight.split([own.shape[1], shared.shape[1]], dim=1)
    each = F.conv2d(own, own_weight, None, conv.stride, conv.padding)
    once = F.conv2d(shared, shared_weight, conv.bias, conv.stride, conv.padding)
    return add_shared(each, once)


def geometry(conv: nn.Conv2d) -> dict[str, Any]:
    """The arguments of ``nn.Conv2d`` that give another convolution the same output size."""
    return {name: getattr(conv, name) for name in ('kernel_size', 'stride', 'padding', 'dilation')}


def init_keys_(conv: nn.Conv2d) -> None:
    """Give the convolution from features to keys orthogonal weights and a zero bias."""
    nn.init.orthogonal_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class ResBlock(nn.Module):
    """A residual block of two 3x3 convolutions, each after a ReLU, without normalisation.

    ``[B, I, h, w] -> [B, O, h, w]``. If the number of channels changes, the shortcut is a 3x3 convolution. The last
    input channels may be passed separately as ``shared``, where K samples share them; see :func:`conv_shared`.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.downsample = nn.Conv2d(in_channels, out_channels, 3, padding=1) if in_channels != out_channels else None
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        if shared is None:
            inner, shortcut = relu_conv(self.conv1, x), x if self.downsample is None else self.downsample(x)
        else:
            inner = conv_shared(self.conv1, x, shared, relu=True)
            if self.downsample is None:
                # This concatenates x and shared, as a sum in which each has zeros in the channels of the other.
                own, others = (0, 0, 0, 0, 0, shared.shape[1]), (0, 0, 0, 0, x.shape[1], 0)
                shortcut = add_shared(F.pad(x, own), F.pad(shared, others))
            else:
                shortcut = conv_shared(self.downsample, x, shared)
        inner = relu_conv(self.conv2, inner)  # the name is reused, so that the input's memory is freed
        return inner.add_(shortcut)


class ChannelGate(nn.Module):
    """CBAM's channel attention: the sum of one MLP's results on the average- and on the max-pooled features."""

    def __init__(self, channels: int, *, reduction: int = 16):
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.mlp(x.mean(dim=(2, 3))) + self.mlp(x.amax(dim=(2, 3)))
        return x * gate.sigmoid()[:, :, None, None]


class SpatialGate(nn.Module):
    """CBAM's spatial attention: a 7x7 convolution on the maximum and the mean over channels."""

    def __init__(self):
        super().__init__()
        self.spatial = nn.Sequential(OrderedDict(conv=nn.Conv2d(2, 1, 7, padding=3)))  # named as in published weights

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)
        return x * self.spatial(pooled).sigmoid()


class CBAM(nn.Module):
    """Convolutional block attention (Woo et al., ECCV 2018) with the defaults of its paper, without batch norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.ChannelGate = ChannelGate(channels)
        self.SpatialGate = SpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        return self.SpatialGate(self.ChannelGate(x))


class ASPP(torchvision.models.segmentation.deeplabv3.ASPP):
    """Atrous spatial pyramid pooling (Chen et al., 2017) with the rates of its paper for stride 16.

    ``[B, I, h, w] -> [B, O, h, w]``. The outputs are not negative, like the features of a ResNet. It differs from the
    paper in two ways:

    - There is no dropout. It would change the keys of two frames independently, but the read depends on the distance
      between keys. It would also make training depend on a random state.
    - The initial weights keep the scale of the features (He et al., 2015). Batch norm cannot, because its statistics
      are frozen at mean 0 and variance 1.
    """

    project: nn.Sequential

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, (6, 12, 18), out_channels)
        self.project = self.project[:-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
