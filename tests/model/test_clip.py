"""The forward and backward pass of training against the published numbers."""

import json

import numpy as np
import pytest
import torch

from model import STCN, VARIANTS
from model.clip import segment_clip
from model.losses import clip_loss, hardest_fraction
from tests.conftest import GOLDEN, golden, make_small_network, state_dict

ITERATIONS = (0, 20_000, 45_000, 70_000, 100_000)


def published_clip(stage):
    """rgb, masks of the first frame, selector, target of the predicted frames; stage 0 knows one object."""
    arrays = {
        name: torch.from_numpy(array)
        for name, array in golden('training').items()
        if name in ('rgb', 'gt', 'sec_gt', 'selector', 'cls_gt')
    }
    masks = torch.cat([arrays['gt'], arrays['sec_gt']], dim=2)[:, 0]
    target = arrays['cls_gt'][:, 1:]
    if stage == 0:
        return arrays['rgb'], masks[:, :1], torch.ones(len(masks), 1), target * (target == 1)
    return arrays['rgb'], masks, arrays['selector'], target


@pytest.mark.parametrize(
    ('stage', 'variant', 'layout'),
    [
        (0, 'stcn_s0', 'layout_stcn_s0.json'),
        (3, 'stcn', 'layout_stcn.json'),
    ],
)
def test_published_numbers(stage, variant, layout):
    network = STCN(VARIANTS[variant]).train()
    network.load_state_dict(state_dict(layout))
    expected = {
        name.removeprefix(f's{stage}_'): array
        for name, array in golden('training').items()
        if name.startswith(f's{stage}_')
    }

    rgb, masks, selector, target = published_clip(stage)
    logits = segment_clip(network, rgb, masks, selector)
    for t in (1, 2):
        frame = logits[:, t - 1].detach()
        # Where a probability is nearly 0 or 1, its logit amplifies the rounding error.
        np.testing.assert_allclose(frame, expected[f'logits_{t}'], atol=1e-3, rtol=0)
        np.testing.assert_allclose(frame.softmax(dim=1)[:, 1:], expected[f'prob_{t}'], atol=1e-4, rtol=0)
    for iteration in ITERATIONS:
        fraction = hardest_fraction(iteration)
        assert fraction == pytest.approx(expected[f'p_it{iteration}'].item(), abs=1e-6)
        loss = clip_loss(logits, target, selector, fraction=fraction)
        assert loss.item() == pytest.approx(expected[f'loss_it{iteration}'].item(), rel=1e-4)

    clip_loss(logits, target, selector, fraction=hardest_fraction(45_000)).backward()
    names = json.loads((GOLDEN / f'train_s{stage}_parameter_names.json').read_text())
    assert names == [name for name, _ in network.named_parameters()]
    norms = [parameter.grad.norm() for parameter in network.parameters()]
    # One norm is zero except for rounding: that of the keys' bias, which cancels in the distances of keys.
    np.testing.assert_allclose(norms, expected['gradnorm_it45000'], rtol=5e-3, atol=1e-6)


@pytest.fixture(scope='module')
def random_clip():
    torch.manual_seed(0)
    selector = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    return torch.randn(2, 3, 3, 64, 80), (torch.rand(2, 2, 64, 80) > 0.7).float(), selector


def test_samples_do_not_see_each_other(random_clip):
    network = make_small_network()
    together = segment_clip(network, *random_clip)
    alone = torch.cat([segment_clip(network, *(each[i : i + 1] for each in random_clip)) for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_order_of_objects_does_not_matter(random_clip):
    network = make_small_network()
    rgb, masks, _ = random_clip
    selector = torch.ones(2, 2)
    logits = segment_clip(network, rgb, masks, selector)
    swapped = segment_clip(network, rgb, masks.flip(1), selector)
    torch.testing.assert_close(logits, swapped[:, :, [0, 2, 1]], atol=1e-4, rtol=1e-4)


def test_half_precision_aggregates_in_float32(random_clip):
    network = make_small_network()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        logits = segment_clip(network, *random_clip)
    assert logits.dtype == torch.float32
    assert logits[1, :, 2].max().item() == pytest.approx(np.log(1e-7), abs=1e-3)  # an object that is not there
    torch.testing.assert_close(
        logits.softmax(dim=2), segment_clip(network, *random_clip).softmax(dim=2), atol=0.1, rtol=0
    )


def test_every_parameter_is_trained(random_clip):
    network = make_small_network().train()
    logits = segment_clip(network, *random_clip)
    clip_loss(logits, torch.ones(2, 2, 64, 80, dtype=torch.int64), random_clip[2], fraction=1.0).backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in network.parameters())


def test_recomputed_activations_change_nothing(random_clip):
    network = make_small_network().train()
    gradients = []
    for recompute in (False, True):
        logits = segment_clip(network, *random_clip, recompute=recompute)
        logits.square().mean().backward()
        gradients.append((logits.detach(), *(parameter.grad for parameter in network.parameters())))
        network.zero_grad()
    assert all(torch.equal(found, expected) for found, expected in zip(*gradients, strict=True))
