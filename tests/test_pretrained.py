"""ImageNet weights: which file serves which backbone, and what the network keeps of it."""

import pytest
import torch
import torchvision

from model import STCN, CheckpointError, STCNConfig
from model.pretrained import imagenet_weights

CONFIG = STCNConfig('mobilenet_v2', 'resnet18', key_dim=16, value_dim=32, decoder_widths=(32, 16))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Under names that say nothing."""
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
