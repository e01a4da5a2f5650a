"""Feature fusion: joins the features of the value encoder and of the key encoder (supplementary F.2)."""

from torch import Tensor, nn

from model.modules import CBAM, ResBlock


class FeatureFusion(nn.Module):
    """Two ResBlocks around a CBAM block on the concatenated features; ``attention=False``: without CBAM."""

    def __init__(self, value_channels: int, key_channels: int, out_channels: int, *, attention: bool = True):
        super().__init__()
        self.block1 = ResBlock(value_channels + key_channels, out_channels)
        self.attention = CBAM(out_channels) if attention else None
        self.block2 = ResBlock(out_channels, out_channels)

    def forward(self, value_f16: Tensor, key_f16: Tensor) -> Tensor:
        """``value_f16 [B, K, C, h, w], key_f16 [B, C', h, w] -> [B, K, Cv, h, w]``."""
        x = self.block1(value_f16.flatten(0, 1), key_f16)
        if self.attention is not None:
            x = x + self.attention(x)
        return self.block2(x).unflatten(0, (len(value_f16), -1))
