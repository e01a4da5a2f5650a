"""An ensemble gives the mean of what its cores give alone, with any networks, sizes and flips, also after failures."""

import pytest
import torch
import torch.nn.functional as F

from inference.core import InferenceCore, InputError
from inference.ensemble import Ensemble, Member
from model import STM, Network, STMConfig
from tests.conftest import ROUNDING, make_small_network

FRAMES = 6


@pytest.fixture(scope='module')
def other_network() -> Network:
    return make_small_network(similarity='dot', key_dim=8, value_dim=16, decoder_widths=(16, 16))


@pytest.fixture(scope='module')
def small_stm() -> Network:
    torch.manual_seed(0)
    network = STM(STMConfig('resnet18', 'resnet18', key_dim=16, value_dim=32, decoder_width=16))
    torch.nn.init.normal_(network.Decoder.pred2.weight, std=0.3)
    return network.eval()


@pytest.fixture
def masks(first_mask):
    """Objects 1 and 2 on frame 0; 9 appears on frame 3."""
    second = torch.zeros_like(first_mask)
    second[60:90, 100:150] = 9
    return {0: torch.where(first_mask < 3, first_mask, 0), 3: second}


def run(core, clip, masks, *, wanted=range(FRAMES)):
    """``core.step`` over the clip's first frames."""
    return [
        core.step(image, masks.get(t), wanted=t in wanted, last=t == FRAMES - 1)
        for t, image in enumerate(clip[:FRAMES])
    ]


def mirrored(clip, masks):
    return [image.flip(-1) for image in clip], {t: mask.flip(-1) for t, mask in masks.items()}


def assert_equal(found, expected, **tolerance):
    for prob, other in zip(found, expected, strict=True):
        torch.testing.assert_close(prob, other, **(tolerance or {'atol': 0, 'rtol': 0}))


def mean(*runs):
    return [sum(probs) / len(probs) for probs in zip(*runs, strict=True)]


def test_flip_of_a_mirrored_video_is_the_plain_run(small_network, clip, masks):
    expected = run(InferenceCore(small_network), clip, masks)
    found = run(Ensemble([Member(small_network, flip=True)]), *mirrored(clip, masks))
    assert_equal([prob.flip(-1) for prob in found], expected)


@pytest.mark.parametrize('size', [48, 35])
def test_the_resized_frame_is_mirrored(small_network, clip, masks, size):
    """Mirroring comes after resizing: resizing a mirrored mask would choose other pixels as the nearest ones."""
    shape = (size, size * 182 // 110)
    frames = [F.interpolate(image[None] / 255, shape, mode='bicubic')[0] for image in clip]
    small = {
        t: F.interpolate(mask[None, None].float(), shape, mode='nearest')[0, 0].byte() for t, mask in masks.items()
    }
    other = F.interpolate(masks[0].flip(-1)[None, None].float(), shape, mode='nearest')[0, 0].byte()
    assert not torch.equal(small[0].flip(-1), other)

    expected = run(InferenceCore(small_network), *mirrored(frames, small))
    found = run(Ensemble([Member(small_network, size=size, flip=True)]), clip, masks)
    for prob, at_its_size in zip(found, expected, strict=True):
        resized = F.interpolate(at_its_size.flip(-1)[None], prob.shape[1:], mode='bilinear')[0]
        torch.testing.assert_close(prob, resized, **ROUNDING)


def test_a_network_twice_is_itself(small_network, clip, masks):
    core = InferenceCore(small_network, mem_every=2)
    expected = run(core, clip, masks)
    for members in ([Member(small_network)], [Member(small_network)] * 2):
        ensemble = Ensemble(members, mem_every=2)
        found = run(ensemble, clip, masks)
        assert_equal(found, expected)
        assert ensemble.objects == core.objects == [1, 2, 9]
        assert torch.equal(ensemble.to_labels(found[-1]), core.to_labels(expected[-1]))


@pytest.mark.parametrize('options', [{}, {'include_last': True, 'top_k': None}, {'max_memory_frames': 2}])
def test_sizes_flips_and_networks_are_averaged(small_network, other_network, small_stm, clip, masks, options):
    """Each member equals its own run, also if similarities, widths and the number of keys differ between them."""
    members = [
        Member(small_network),
        Member(small_network, size=48),
        Member(small_network, size=48, flip=True),
        Member(other_network, size=35),
        Member(small_stm, size=32),
        Member(small_stm, size=32, flip=True),
    ]
    runs = []
    for member in members:
        core = InferenceCore(member.network, size=member.size, mem_every=2, mirrored=member.flip, **options)
        runs.append(run(core, clip, masks))
    ensemble = Ensemble(members, mem_every=2, **options)
    found = run(ensemble, clip, masks)
    assert_equal(found, mean(*runs), atol=1e-6, rtol=0)
    assert all(prob.sum(dim=0).sub(1).abs().max() < 1e-5 for prob in found)
    assert not torch.allclose(found[-1], runs[0][-1], atol=1e-3)


def test_kernelised_read_of_one_size(small_network, clip, masks):
    sigma = {'kernel_sigma': 7.0}
    expected = mean(
        run(InferenceCore(small_network, size=32), clip, masks),
        run(InferenceCore(small_network, size=48, **sigma), clip, masks),
    )
    found = run(Ensemble([Member(small_network, size=32), Member(small_network, size=48, **sigma)]), clip, masks)
    assert_equal(found, expected, atol=1e-6, rtol=0)


def test_frames_that_nobody_asks_for_are_skipped(small_network, other_network, clip, masks):
    members = [Member(small_network, size=32), Member(other_network, size=48, flip=True)]
    expected = run(Ensemble(members), clip, masks)
    ensemble = Ensemble(members)
    plan = ensemble.schedule.copy()
    found = []
    for t, image in enumerate(clip[:FRAMES]):
        flags = {'wanted': t == 4, 'last': t == FRAMES - 1}
        step = plan.advance(annotated=t in masks, **flags)
        found.append(ensemble.step(image if step.compute else None, masks.get(t), **flags))
    assert [t for t, prob in enumerate(found) if prob is not None] == [4]
    assert_equal(found[4:5], expected[4:5])


def test_before_the_first_annotation_everything_is_background(small_network, clip, first_mask):
    ensemble = Ensemble([Member(small_network), Member(small_network, flip=True)])
    assert torch.equal(ensemble.step(clip[0]), torch.ones(1, 110, 182))
    assert len(ensemble.step(clip[1], first_mask)) == 4


@pytest.mark.parametrize('function', ['encode_query', 'encode_memory', 'decode'])
def test_a_frame_that_failed_halfway_ends_the_video(small_network, other_network, clip, masks, monkeypatch, function):
    ensemble = Ensemble([Member(small_network, size=32), Member(other_network, size=48)])
    for t in range(3):
        ensemble.step(clip[t], masks.get(t))
    with monkeypatch.context() as patch:

        def fail(*args, **options):
            raise torch.OutOfMemoryError

        patch.setattr(other_network, function, fail)
        with pytest.raises(torch.OutOfMemoryError):
            ensemble.step(clip[3], masks[3])
    with pytest.raises(InputError, match='start the video again'):
        ensemble.step(clip[3], masks[3])


def test_frames_that_no_core_takes_change_nothing(small_network, clip, masks):
    members = [Member(small_network, size=32, flip=True), Member(small_network, size=32)]
    expected = run(Ensemble(members), clip, masks)
    ensemble, found = Ensemble(members), []
    for t, image in enumerate(clip[:FRAMES]):
        for wrong in ((image[:1], None), (image, masks[0][:50]), (image, masks[0].float()), (image, None, [300])):
            with pytest.raises(InputError):
                ensemble.step(*wrong)
        found.append(ensemble.step(image, masks.get(t), last=t == FRAMES - 1))
    assert_equal(found, expected)


def test_an_object_leaves_all_cores(small_network, clip, masks):
    members = [Member(small_network, size=32), Member(small_network, size=48, flip=True)]
    ensemble, fresh = Ensemble(members), Ensemble(members)
    run(ensemble, clip[:4], masks)
    with pytest.raises(InputError, match='found 3'):
        ensemble.remove(3)
    for label in (9, 1, 2):
        ensemble.remove(label)
    assert ensemble.objects == []
    again = {0: masks[3], 2: masks[0]}
    assert_equal(run(ensemble, clip[:5], again), run(fresh, clip[:5], again))


def test_a_network_is_there_once(small_network):
    ensemble = Ensemble([Member(small_network, size=size, flip=flip) for size in (64, 80) for flip in (False, True)])
    assert {id(core.network) for core in ensemble.cores} == {id(small_network)}
    assert len({id(core.memory) for core in ensemble.cores}) == 4


def test_members(small_network):
    with pytest.raises(ValueError, match='at least one'):
        Ensemble([])
    elsewhere = make_small_network().to('meta')
    with pytest.raises(ValueError, match='on one device, found cpu, meta'):
        Ensemble([Member(small_network), Member(elsewhere)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_gpu_equals_cpu(clip, masks):
    networks = make_small_network(), make_small_network(similarity='dot')
    found = {}
    for device in ('cpu', 'cuda'):
        members = [
            Member(network.to(device), size=size, flip=flip)
            for network in networks
            for size in (None, 64)
            for flip in (False, True)
        ]
        found[device] = [prob.cpu() for prob in run(Ensemble(members), clip, masks)]
    assert_equal(found['cuda'], found['cpu'], atol=5e-3, rtol=0)
