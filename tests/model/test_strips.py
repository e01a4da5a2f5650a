"""A block of a MobileNetV2 gives the same result in strips of rows as on all rows at once."""

import pytest
import torch

from model import strips
from model.backbones import build_backbone
from model.network import fold_batch_norm


@pytest.mark.parametrize('name', ['mobilenet_v2', 'mobilenet_v2_dilated'])
@torch.inference_mode()
def test_strips_are_the_whole(monkeypatch, name):
    """The backbones have all kinds of blocks: without expansion, with strides, residual and dilated.

    Strips of several rows and of one row are tested.
    """
    monkeypatch.setattr(strips, 'LARGE', 0)
    torch.manual_seed(0)
    backbone = build_backbone(name).eval()
    fold_batch_norm(backbone)
    image = torch.randn(2, 3, 80, 112)
    expected = backbone(image)
    strips.replace_blocks(backbone)
    assert sum(isinstance(module, strips.InStrips) for module in backbone.modules()) >= 13
    for size in (2**15, 1):
        monkeypatch.setattr(strips, 'STRIP', size)
        for each, found in zip(expected, backbone(image), strict=True):
            torch.testing.assert_close(found, each, atol=1e-5 * float(each.abs().max()), rtol=0)
