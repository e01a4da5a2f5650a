"""The mask decoder: from the memory readout and the frame's features to one logit for each pixel and object."""

import torch.nn.functional as F
from torch import Tensor, nn

from model.modules import ResBlock, upsample_and_add


class UpsampleBlock(nn.Module):
    """Doubles the resolution: adds a skip connection to the bilinearly upsampled input, then applies a ResBlock."""

    def __init__(self, skip_channels: int, in_channels: int, out_channels: int):
        super().__init__()
        self.skip_conv = nn.Conv2d(skip_channels, in_channels, 3, padding=1)
        self.out_conv = ResBlock(in_channels, out_channels)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        """``skip [B, S, 2h, 2w], x [B*K, I, h, w] -> [B*K, O, 2h, 2w]``; the skip serves all K objects."""
        return self.out_conv(upsample_and_add(x, self.skip_conv(skip)))


class Decoder(nn.Module):
    """Upsamples from stride 16 to stride 4 with two skip connections, and then bilinearly to the full size."""

    def __init__(self, *, value_dim: int, skip_channels: tuple[int, int], widths: tuple[int, int]):
        super().__init__()
        skip8, skip4 = skip_channels
        self.compress = ResBlock(2 * value_dim, widths[0])
        self.up_16_8 = UpsampleBlock(skip8, widths[0], widths[1])
        self.up_8_4 = UpsampleBlock(skip4, widths[1], widths[1])
        self.pred = nn.Conv2d(widths[1], 1, 3, padding=1)

    def forward(self, readout: Tensor, thin: Tensor, f8: Tensor, f4: Tensor) -> Tensor:
        """``readout [B, K, Cv, h, w], thin [B, Cv, h, w], f8, f4 -> logits [B, K, 16 h, 16 w]``."""
        x = self.compress(readout.flatten(0, 1), thin)
        x = self.up_16_8(f8, x)
        x = self.up_8_4(f4, x)
        logits = self.pred(F.relu(x, inplace=True))
        logits = F.interpolate(logits, scale_factor=4, mode='bilinear', align_corners=False)
        return logits.unflatten(0, (len(readout), -1)).squeeze(2)
