"""Backbones: files of ImageNet weights are recognised by their layout, and the weights reach the network."""

import pytest
import torch
import torchvision

from model import STCN, CheckpointError, STCNConfig
from model.backbones import StridedDepthwise, build_backbone
from model.pretrained import imagenet_weights

CONFIG = STCNConfig('mobilenet_v2', 'resnet18', key_dim=16, value_dim=32, decoder_widths=(32, 16))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Random weights of two backbones, in files whose names do not tell which."""
    folder = tmp_path_factory.mktemp('weights')
    for index, name in enumerate(('resnet18', 'mobilenet_v2')):
        state = getattr(torchvision.models, name)(weights=None).state_dict()
        torch.save(
            {key: torch.rand_like(value) if value.is_floating_point() else value for key, value in state.items()},
            folder / f'{index}.pth',
        )
    return folder / '0.pth', folder / '1.pth'


def test_files_are_recognised_by_their_layout(files):
    weights = imagenet_weights(('mobilenet_v2', 'resnet18'), files)
    network = STCN(CONFIG, backbone_weights=weights)
    key, value = weights['mobilenet_v2'], weights['resnet18']
    assert torch.equal(network.key_encoder.to_f4[0][0].weight, key['features.0.0.weight'])
    assert torch.equal(network.key_encoder.to_f16[-1].conv[-1].running_var, key['features.13.conv.3.running_var'])
    conv1 = network.value_encoder.conv1
    assert torch.equal(conv1.weight[:, :3], value['conv1.weight'])
    masks = conv1.weight[:, 3:].flatten(1)
    torch.testing.assert_close(masks @ masks.T, torch.eye(64), atol=1e-5, rtol=0)  # orthogonal
    assert not conv1.bias.any()
    assert torch.equal(network.value_encoder.layer3[1].bn2.running_mean, value['layer3.1.bn2.running_mean'])
    assert not network.value_encoder.layer3[1].conv2.bias.any()


def test_one_file_serves_both_encoders(files):
    weights = imagenet_weights(('mobilenet_v2', 'mobilenet_v2'), files[1:])
    assert list(weights) == ['mobilenet_v2']


def test_a_file_without_counters_fits(files, tmp_path):
    """torchvision's older files have none."""
    state = {name: value for name, value in torch.load(files[0]).items() if 'num_batches_tracked' not in name}
    torch.save(state, tmp_path / 'old.pth')
    STCN(CONFIG, backbone_weights=imagenet_weights(('resnet18',), [tmp_path / 'old.pth']))


def test_a_file_that_fits_nothing_is_named(files, tmp_path):
    message = r"0\.pth: expected torchvision's weights of mobilenet_v2, found those of resnet18"
    with pytest.raises(CheckpointError, match=message):
        imagenet_weights(('mobilenet_v2',), files)
    torch.save({'a': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='no known backbone'):
        imagenet_weights(('mobilenet_v2',), [tmp_path / 'other.pth'])


def test_dilation_keeps_what_the_strided_network_computes():
    """At every other position the dilated features are those of the classifier at stride 32."""
    torch.manual_seed(0)
    classifier = torchvision.models.mobilenet_v2(weights=None).eval()
    backbone = build_backbone('mobilenet_v2_dilated', weights=classifier.state_dict()).eval()
    image = torch.randn(1, 3, 96, 128)
    f16, f8, f4 = backbone(image)
    assert [tuple(features.shape[1:]) for features in (f16, f8, f4)] == [(160, 6, 8), (32, 12, 16), (24, 24, 32)]
    torch.testing.assert_close(f16[..., ::2, ::2], classifier.features[:17](image), atol=1e-5, rtol=1e-4)


def test_mixed_precision_trains_strided_depthwise_convolutions_in_float32():
    """Their gradients are those of float32. Without gradients, they compute in bfloat16, like all others."""
    backbone = build_backbone('mobilenet_v2_dilated')
    convs = [module for module in backbone.modules() if isinstance(module, StridedDepthwise)]
    assert [(conv.stride[0], conv.dilation[0]) for conv in convs] == [(2, 1), (2, 1), (2, 1), (1, 2), (1, 2)]
    x = torch.randn(2, convs[0].in_channels, 16, 16).bfloat16().float()
    expected = torch.autograd.grad(convs[0](x).square().sum(), convs[0].weight)[0]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = torch.autograd.grad(convs[0](x.bfloat16()).float().square().sum(), convs[0].weight)[0]
        with torch.no_grad():
            assert convs[0](x).dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
