"""STM gives the published numbers, and every variant can be trained, saved and loaded."""

import dataclasses
import itertools
import json

import pytest
import torch

from inference import Ensemble, InferenceCore, Member
from inference.memory_bank import MemoryBank
from model import STM, VARIANTS, CheckpointError, build_network, load_network, save_network, stm
from model.clip import segment_clip
from model.image import IMAGE_MEAN, IMAGE_STD
from model.losses import clip_loss
from model.modules import ASPP
from model.variants import config_from
from tests.conftest import GOLDEN, golden, state_dict
from tests.helpers import assert_close
from training.state import initial_network

RANDOM = ['none']  # backbone weights
RESNET18 = {'query_backbone': 'resnet18', 'memory_backbone': 'resnet18'}


def published() -> dict[str, torch.Tensor]:
    state = state_dict('layout_stm.json')
    for encoder in ('Encoder_M', 'Encoder_Q'):
        state[f'{encoder}.mean'] = torch.tensor(IMAGE_MEAN)[None, :, None, None]
        state[f'{encoder}.std'] = torch.tensor(IMAGE_STD)[None, :, None, None]
    for name, factor in (('Decoder.pred2', 1.5), ('KV_M_r4.Key', 0.8), ('KV_Q_r4.Key', 0.8)):
        state[f'{name}.weight'] *= factor
    return state


@pytest.fixture(scope='module')
def network():
    network = STM()
    network.load_state_dict(published())
    return network.eval()


def small(name, **changes):
    """A variant with few channels everywhere but in its backbones."""
    narrow = {'key_dim': 16, 'value_dim': 32, 'decoder_widths': (32, 16), 'decoder_width': 16, 'aspp_dim': 24}
    config = VARIANTS[name]
    narrow = {key: value for key, value in narrow.items() if getattr(config, key, None) is not None}
    torch.manual_seed(0)
    return build_network(dataclasses.replace(config, **narrow, **changes))


def test_published_layout_is_ours(network):
    own = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert own == dict(json.loads((GOLDEN / 'layout_stm.json').read_text()))


def test_propagation(network, clip, first_mask):
    expected = golden('stm')
    core = InferenceCore(network, top_k=None, mem_every=5, include_last=True)
    for t, image in enumerate(clip[:8]):
        prob = core.step(image, first_mask if t == 0 else None, [1, 2] if t == 0 else None)
        assert_close(prob[:, ::2, ::2], expected['prob'][t].astype('float32'), tolerance=5e-4)


def test_an_object_with_its_own_keys_joins_later(network, clip):
    """In half precision, with every option that STM's schedule has."""
    first, second = (torch.zeros(64, 96, dtype=torch.uint8) for _ in range(2))
    first[10:40, 10:50] = 1
    second[20:60, 60:90] = 2
    alone, both = (InferenceCore(network, top_k=None, mem_every=None, include_last=True, amp=True) for _ in range(2))
    for t, image in enumerate(clip[:4]):
        expected = alone.step(image[:, :64, :96], first if t == 0 else None)
        found = both.step(image[:, :64, :96], {0: first, 2: second}.get(t))
        assert found.isfinite().all()
        assert torch.equal(found, expected) == (t < 2)
    assert both.objects == [1, 2]


@torch.inference_mode()
def test_memory_of_the_first_frame(network, clip, first_mask):
    expected = golden('stm')
    core = InferenceCore(network)
    image, padding = core._to_network(clip[0])
    query = network.encode_query(image)
    masks = core._merge(torch.ones(1, *image.shape[-2:]), first_mask, [1, 2], [1, 2], padding)[None, 1:]
    for object_chunk in (None, 1):
        key, value = network.encode_memory(image, query, masks, object_chunk=object_chunk)
        assert_close(key[0], expected['memory_key'])
        assert_close(value[0, :, ::4], expected['memory_value'])


def test_padding_is_black_and_holds_no_object(network, clip, first_mask, monkeypatch):
    """The published network pads in this way, and other padding was not in its training."""
    seen = []
    encode_memory = network.encode_memory

    def spy(image, query, masks, **options):
        seen.append((image, masks))
        return encode_memory(image, query, masks, **options)

    monkeypatch.setattr(network, 'encode_memory', spy)
    core = InferenceCore(network, include_last=True)
    core.step(clip[0], first_mask)
    core.step(clip[1])
    for image, _ in seen:
        assert image.shape == (1, 3, 112, 192)
        for outside in (image[..., :5], image[..., -5:], image[..., :1, :], image[..., -1:, :]):
            rgb = outside * torch.tensor(IMAGE_STD)[:, None, None] + torch.tensor(IMAGE_MEAN)[:, None, None]
            torch.testing.assert_close(rgb, torch.zeros_like(rgb))
    assert not seen[1][1][..., :5].any()
    assert not seen[1][1][..., -1:, :].any()
    assert seen[1][1].any()


@torch.inference_mode()
def test_normalisation_of_a_file_is_honoured(network):
    """A file's mean and deviation are for images in [0, 1], but our network gets images normalised for ImageNet."""
    torch.manual_seed(0)
    x = torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGE_MEAN, IMAGE_STD))
    encoder = small('stm_light').Encoder_Q
    image = (x - mean) / std
    assert torch.equal(stm._normalised(image, encoder), image)
    encoder.mean.fill_(0.5)
    encoder.std.copy_(torch.tensor([0.5, 0.25, 1.0])[None, :, None, None])
    torch.testing.assert_close(stm._normalised(image, encoder), (x - encoder.mean) / encoder.std)


def test_published_file_is_recognised(tmp_path, network):
    torch.save({f'module.{name}': value for name, value in network.state_dict().items()}, tmp_path / 'stm.pth')
    loaded = load_network(tmp_path / 'stm.pth')
    assert isinstance(loaded, STM)
    assert loaded.config == VARIANTS['stm']
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize('similarity', ['dot', 'l2'])
@torch.inference_mode()
def test_bank_equals_the_read_of_training(similarity):
    network = small('stm', **RESNET18, similarity=similarity).eval()
    torch.manual_seed(1)
    images, masks = torch.randn(4, 1, 3, 48, 64), torch.rand(1, 3, 48, 64)
    frames = [network.encode_memory(image, network.encode_query(image), masks) for image in images[:3]]
    query = network.encode_query(images[3])
    keys, values = (torch.stack(each, dim=3) for each in zip(*frames, strict=True))
    assert keys.shape == (1, 3, 16, 3, 3, 4)
    expected = network.read(keys, values, query)[0]
    for top_k in (None, 36, 5):
        bank = MemoryBank(shared_keys=network.shared_keys, metric=network.similarity, top_k=top_k)
        for key, value in frames:
            bank.add(key[0], value[0])
        found = bank.read(query.key[0])
        assert torch.allclose(found, expected, atol=1e-4) == (top_k != 5)


@pytest.mark.parametrize(
    ('name', 'similarity'),
    [
        *itertools.product(['stcn_light', 'stm_light'], ['l2', 'dot']),
        ('stcn_wide', 'dot'),
        ('stcn_wide_aspp', 'l2'),
        ('stm', 'l2'),
    ],
)
def test_a_variant_trains_comes_back_and_joins_an_ensemble(name, similarity, tmp_path, small_network):
    network = small(name, similarity=similarity).train()
    selector = torch.ones(1, 2)
    rgb, masks = torch.randn(1, 3, 3, 32, 48), (torch.rand(1, 2, 32, 48) > 0.7).float()
    logits = segment_clip(network, rgb, masks, selector)
    target = torch.randint(3, (1, 2, 32, 48))
    loss = clip_loss(logits, target, selector, fraction=1.0)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    torch.optim.SGD(network.parameters(), lr=1e-3).step()

    content = json.loads(json.dumps(dataclasses.asdict(network.config)))  # nothing but plain data
    assert config_from(content) == network.config
    save_network(tmp_path / 'trained.pth', network)
    loaded = load_network(tmp_path / 'trained.pth')
    assert type(loaded) is type(network)
    assert loaded.config == network.config
    with torch.inference_mode():
        assert torch.equal(segment_clip(loaded, rgb, masks, selector), segment_clip(network, rgb, masks, selector))

    frames, mask = torch.rand(4, 3, 40, 56), torch.arange(56).div(20, rounding_mode='floor').expand(40, 56)
    ensemble = Ensemble([Member(loaded.optimize_()), Member(small_network, size=32, flip=True)], mem_every=2)
    alone = [Ensemble([member], mem_every=2) for member in ensemble.members]
    for t, image in enumerate(frames):
        found, *parts = [core.step(image, mask if t == 0 else None) for core in (ensemble, *alone)]
        torch.testing.assert_close(found, sum(parts) / 2)


def test_batch_norm_of_the_aspp_is_frozen_and_keeps_the_scale():
    network = small('stcn_wide_aspp').train()
    norms = [module for module in network.aspp.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 6
    assert not any(norm.training for norm in norms)
    aspp = ASPP(1024, 256).eval()
    features = torch.randn(1, 1024, 24, 24).relu()
    with torch.inference_mode():
        assert 0.3 < aspp(features).square().mean() / features.square().mean() < 3


@torch.inference_mode()
def test_stage_0_knows_no_other_objects(tmp_path):
    """With zeros as the weights for the other objects, a widened network gives the same masks as before."""
    network = small('stm', **RESNET18, single_object=True).eval()
    save_network(tmp_path / 's0.pth', network)
    assert load_network(tmp_path / 's0.pth', widen=None).config == network.config
    rgb, masks, selector = torch.randn(1, 3, 3, 32, 48), torch.rand(1, 2, 32, 48), torch.ones(1, 2)
    expected = segment_clip(network, rgb, masks, selector)
    for widen in ('zeros', 'orthogonal'):
        wider = load_network(tmp_path / 's0.pth', widen=widen)
        assert not wider.config.single_object
        found = segment_clip(wider, rgb, masks, selector)
        assert torch.allclose(found, expected, atol=1e-5) == (widen == 'zeros')
    weight = wider.Encoder_M.conv1_o.weight.flatten(1)
    torch.testing.assert_close(weight.T @ weight, torch.eye(49))


def test_training_starts_from_every_variant(tmp_path):
    first = initial_network(arch='stm_light', single_object=True, backbone_files=RANDOM)
    assert isinstance(first, STM)
    save_network(tmp_path / 's0.pth', first)
    second = initial_network(arch='stm_light', single_object=False, weights=tmp_path / 's0.pth')
    assert second.config == VARIANTS['stm_light']
    assert torch.equal(second.KV_M_r4.Key.weight, first.KV_M_r4.Key.weight)


def test_similarity_of_a_run(tmp_path):
    first = initial_network(arch='stm_light', similarity='l2', single_object=True, backbone_files=RANDOM)
    assert first.config == dataclasses.replace(VARIANTS['stm_light'], similarity='l2', single_object=True)
    save_network(tmp_path / 's0.pth', first)
    options = {'single_object': False, 'weights': tmp_path / 's0.pth'}
    for asked in ({}, {'arch': 'stm_light', 'similarity': 'l2'}):
        assert initial_network(**{'arch': None} | asked, **options).similarity == 'l2'
    for asked in ({'similarity': 'dot'}, {'arch': 'stm_light'}):
        with pytest.raises(CheckpointError, match=r"similarity.*'l2'.*expected.*'dot'"):
            initial_network(**{'arch': None} | asked, **options)


@pytest.mark.parametrize('name', ['stcn_light', 'stm_light', 'stcn_wide_aspp'])
def test_folded_batch_norm_changes_nothing_but_rounding(name):
    torch.manual_seed(0)
    network = build_network(VARIANTS[name]).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    image, masks = torch.randn(1, 3, 64, 96), torch.rand(1, 2, 64, 96) / 2

    @torch.inference_mode()
    def outputs():
        query = network.encode_query(image)
        key, value = network.encode_memory(image, query, masks)
        return query.key, key, value, network.decode(value, query)

    before = outputs()
    network.optimize_()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    for found, expected in zip(outputs(), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
