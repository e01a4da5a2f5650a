"""Checkpoints: every layout that users have loads; every broken file says what is wrong with it."""

import dataclasses
import json
import pickle

import pytest
import torch

from model import STCN, VARIANTS, CheckpointError, load_network, save_network
from tests.conftest import GOLDEN, make_small_network, state_dict


@pytest.fixture(scope='module')
def published():
    return state_dict('layout_stcn.json')


def save(tmp_path, content):
    torch.save(content, tmp_path / 'file.pth')
    return tmp_path / 'file.pth'


def assert_same(network, state):
    own = network.state_dict()
    assert set(own) == set(state)
    assert all(torch.equal(own[name], value) for name, value in state.items())


def test_published_layouts_are_ours():
    for variant, layout in (('stcn', 'layout_stcn.json'), ('stcn_s0', 'layout_stcn_s0.json')):
        with torch.device('meta'):
            network = STCN(VARIANTS[variant])
        found = [[name, list(value.shape)] for name, value in network.state_dict().items()]
        assert found == json.loads((GOLDEN / layout).read_text())


@pytest.mark.parametrize(
    'wrap',
    [
        lambda state: state,
        lambda state: {f'module.{name}': value for name, value in state.items()},
        lambda state: {'it': 7, 'network': state, 'optimizer': {}, 'scheduler': {}},
        lambda state: {'network': {f'module.{name}': value for name, value in state.items()}},
        lambda state: {name: value for name, value in state.items() if 'num_batches_tracked' not in name},
    ],
    ids=['plain', 'module', 'training', 'training-module', 'without-counters'],
)
def test_published_file_loads(tmp_path, published, wrap):
    network = load_network(save(tmp_path, wrap(published)))
    assert not network.training
    assert network.config == VARIANTS['stcn']
    own = network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in published.items() if 'num_batches_tracked' not in name)


def test_stage_0_gets_a_fifth_input_channel(tmp_path):
    state = state_dict('layout_stcn_s0.json')
    path = save(tmp_path, state)
    assert_same(load_network(path, widen=None), state)
    weight = state['value_encoder.conv1.weight']
    for widen in ('zeros', 'orthogonal'):
        found = load_network(path, widen=widen).value_encoder.conv1.weight
        assert found.shape == (64, 5, 7, 7)
        assert torch.equal(found[:, :4], weight)
        new = found[:, 4].flatten(1)
        expected = torch.zeros(49, 49) if widen == 'zeros' else torch.eye(49)
        torch.testing.assert_close(new.T @ new, expected)


def test_stage_0_in_half_precision(tmp_path):
    save_network(tmp_path / 'half.pth', make_small_network(single_object=True), dtype=torch.float16)
    weight = load_network(tmp_path / 'half.pth', widen='orthogonal').value_encoder.conv1.weight
    assert weight.dtype == torch.float32
    new = weight[:, 4].flatten(1)
    torch.testing.assert_close(new.T @ new, torch.eye(49), atol=5e-3, rtol=0)


def test_own_file_rebuilds_its_network(tmp_path):
    network = make_small_network(similarity='dot')
    save_network(tmp_path / 'own.pth', network)
    loaded = load_network(tmp_path / 'own.pth')
    assert loaded.config == network.config
    assert_same(loaded, network.state_dict())


def test_files_from_before_other_architectures(tmp_path):
    network = make_small_network()
    config = dataclasses.asdict(network.config)
    del config['arch'], config['aspp_dim']
    loaded = load_network(save(tmp_path, {'config': config, 'network': network.state_dict()}))
    assert loaded.config == network.config
    assert_same(loaded, network.state_dict())


def test_a_network_without_attention_is_recognised_by_what_it_lacks(tmp_path, published):
    state = {name: value for name, value in published.items() if 'attention' not in name}
    assert 0 < len(state) < len(published)
    network = load_network(save(tmp_path, {f'module.{name}': value for name, value in state.items()}))
    assert network.config == VARIANTS['stcn_no_attention']
    assert_same(network, state)


def test_a_network_without_attention_and_its_file(tmp_path):
    network = make_small_network(fusion_attention=False)
    assert not any('attention' in name for name in network.state_dict())
    save_network(tmp_path / 'own.pth', network)
    loaded = load_network(tmp_path / 'own.pth')
    assert loaded.config == network.config
    assert_same(loaded, network.state_dict())


def test_half_precision_file_gives_a_float32_network(tmp_path):
    network = make_small_network()
    save_network(tmp_path / 'full.pth', network)
    save_network(tmp_path / 'half.pth', network, dtype=torch.float16)
    assert (tmp_path / 'half.pth').stat().st_size < 0.6 * (tmp_path / 'full.pth').stat().st_size
    loaded = load_network(tmp_path / 'half.pth')
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    for found, expected in zip(loaded.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_every_wrong_tensor_is_listed(tmp_path, published):
    state = dict(published)
    del state['key_comp.bias'], state['decoder.pred.weight']
    state['key_proj.key_proj.bias'] = torch.zeros(32)
    state['extra.weight'] = torch.zeros(2)
    path = save(tmp_path, state)
    with pytest.raises(CheckpointError) as error:
        load_network(path)
    message = str(error.value)
    assert str(path) in message
    assert "closest is 'stcn'" in message
    for line in (
        'missing: key_comp.bias (512,)',
        'missing: decoder.pred.weight (1, 256, 3, 3)',
        'mis-shaped: key_proj.key_proj.bias is (32,), expected (64,)',
        'unexpected: extra.weight (2,)',
    ):
        assert line in message


class Evil:
    def __reduce__(self):
        return (exec, ('raise SystemExit("executed")',))


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda path: None, 'no such checkpoint file'),
        (lambda path: path.write_bytes(b''), 'an empty file'),
        (lambda path: path.write_text('<html>quota exceeded</html>'), 'found a web page'),
        (
            lambda path: path.write_bytes(pickle.dumps(Evil(), protocol=2)),
            'objects other than tensors, or a damaged file',
        ),
        (lambda path: torch.save({'network': Evil()}, path), 'objects other than tensors'),
        (lambda path: torch.save([1, 2], path), 'expected a dictionary'),
        (lambda path: torch.save({'it': 3}, path), 'no tensors'),
        (lambda path: torch.save({'network': 5}, path), 'expected a state dict'),
        (lambda path: torch.save({'config': {'layers': 3}, 'network': {'a': torch.zeros(1)}}, path), 'not understood'),
        (lambda path: torch.save({'config': 3, 'network': {'a': torch.zeros(1)}}, path), 'not understood'),
        (
            lambda path: torch.save({'config': {'key_backbone': 'vgg'}, 'network': {'a': torch.zeros(1)}}, path),
            'not understood',
        ),
        (
            lambda path: torch.save({'config': {'arch': 'rnn'}, 'network': {'a': torch.zeros(1)}}, path),
            "not understood.*'rnn'",
        ),
        (
            lambda path: torch.save(
                {'config': {'arch': 'stm', 'key_backbone': 'resnet50'}, 'network': {'a': torch.zeros(1)}}, path
            ),
            "not understood.*'key_backbone'",
        ),
    ],
)
def test_wrong_files(tmp_path, make, message):
    path = tmp_path / 'file.pth'
    make(path)
    with pytest.raises(CheckpointError, match=message) as error:
        load_network(path)
    assert str(path) in str(error.value)


def test_truncated_anywhere(tmp_path):
    save_network(tmp_path / 'whole.pth', make_small_network())
    content = (tmp_path / 'whole.pth').read_bytes()
    path = tmp_path / 'part.pth'
    legacy = tmp_path / 'legacy.pth'
    torch.save(make_small_network().state_dict(), legacy, _use_new_zipfile_serialization=False)
    damaged = bytearray(legacy.read_bytes())
    for position in range(0, 4000, 101):
        path.write_bytes(damaged[:position] + bytes([damaged[position] ^ 0x55]) + damaged[position + 1 : 20000])
        with pytest.raises(CheckpointError, match=r'part\.pth'):
            load_network(path)
    for share in (0.001, 0.1, 0.5, 0.9, 0.999, 0.99999):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(CheckpointError, match=r'part\.pth'):
            load_network(path)


def test_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'net.pth'
    save_network(path, make_small_network())
    before = path.read_bytes()

    def fail(content, file):
        file.write_bytes(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(OSError, match='disk full'):
        save_network(path, make_small_network())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
