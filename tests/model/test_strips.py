"""A block of a MobileNetV2 gives the same result in strips of rows as on all rows at once."""

import pytest
import torch

from model import strips
from model.backbones import build_backbone
from model.network import fold_batch_norm


@pytest.mark.parametrize('threads', [1, 2, 3])
@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('name', ['mobilenet_v2', 'mobilenet_v2_dilated'])
@torch.inference_mode()
def test_strips_are_the_whole(monkeypatch, name, autocast, threads):
    """The backbones have all kinds of blocks: without expansion, with strides, residual and dilated.

    Strips of several rows and of one row are tested. In half precision they are compared with the whole in float32.
    """
    torch.set_num_threads(threads)
    monkeypatch.setattr(strips, 'LARGE', 0)
    torch.manual_seed(0)
    backbone = build_backbone(name).eval()
    fold_batch_norm(backbone)
    image = torch.randn(2, 3, 80, 112)
    expected = backbone(image)
    strips.replace_blocks(backbone)
    assert sum(isinstance(module, strips.InStrips) for module in backbone.modules()) >= 13
    tolerance = 0.05 if autocast else 1e-5
    for size in (2**15, 1):
        monkeypatch.setattr(strips, 'STRIP', size)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
            found = backbone(image)
        for each, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other.float(), each, atol=tolerance * float(each.abs().max()), rtol=0)
            assert (other.dtype == torch.bfloat16) == autocast
