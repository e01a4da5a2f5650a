"""The loss against the published numbers, and what must not make a difference to it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.losses import bootstrapped_cross_entropy, clip_loss, hardest_fraction, intersection_and_union, iou
from tests.conftest import GOLDEN

ITERATIONS = (0, 20_000, 45_000, 70_000, 100_000)


@pytest.fixture(scope='module')
def published():
    with np.load(GOLDEN / 'training.npz') as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items() if 'gradnorm' not in name}


def clip_of(published, stage):
    """Logits [B, 2, K+1, H, W], target and selector; stage 0 knows the first object only."""
    logits = torch.stack([published[f's{stage}_logits_{frame}'] for frame in (1, 2)], dim=1)
    target, selector = published['cls_gt'][:, 1:], published['selector']
    if stage == 0:
        target, selector = target * (target == 1), torch.ones(len(target), 1)
    return logits, target, selector


def random_clip(seed=0, shape=(3, 2, 3, 20, 30)):
    torch.manual_seed(seed)
    logits = 3 * torch.randn(shape)
    selector = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    target = torch.randint(3, shape[:2] + shape[3:])
    target[1] = target[1].clamp(max=1)
    return logits, target, selector


@pytest.mark.parametrize('stage', [0, 3])
@pytest.mark.parametrize('iteration', ITERATIONS)
def test_published_losses(published, stage, iteration):
    fraction = hardest_fraction(iteration)
    assert fraction == pytest.approx(published[f's{stage}_p_it{iteration}'].item(), abs=1e-6)
    loss = clip_loss(*clip_of(published, stage), fraction=fraction)
    assert loss.item() == pytest.approx(published[f's{stage}_loss_it{iteration}'].item(), rel=1e-5)


@pytest.mark.parametrize('fraction', [1.0, 0.575, 0.15])
def test_equals_a_loop_over_samples_that_drops_the_third_logit(fraction):
    logits, target, selector = random_clip()
    logits.requires_grad_()
    expected = 0
    for frame in range(2):
        for sample in range(3):
            classes = 3 if selector[sample, 1] else 2
            pixels = F.cross_entropy(
                logits[sample, frame, :classes][None], target[sample, frame][None], reduction='none'
            )
            count = int(fraction * pixels.numel())
            expected = expected + pixels.flatten().sort(descending=True).values[:count].mean() / 3
    loss = clip_loss(logits, target, selector, fraction=fraction)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0], rtol=1e-5, atol=1e-8
    )


def test_a_missing_object_is_as_if_its_logit_were_not_there():
    logits, target, _ = random_clip()
    logits, target = logits[:, 0].requires_grad_(), target[:, 0].clamp(max=1)
    masked = bootstrapped_cross_entropy(logits, target, torch.tensor([[1.0, 0.0]] * 3), fraction=0.5)
    gradient = torch.autograd.grad(masked, logits)[0]
    dropped = bootstrapped_cross_entropy(logits[:, :2], target, torch.ones(3, 1), fraction=0.5)
    assert masked.item() == dropped.item()
    assert (gradient[:, 2] == 0).all()
    torch.testing.assert_close(gradient, torch.autograd.grad(dropped, logits)[0], rtol=0, atol=0)


def test_only_the_hardest_pixels_get_a_gradient():
    logits, target, selector = random_clip()
    logits.requires_grad_()
    clip_loss(logits, target, selector, fraction=0.15).backward()
    assert ((logits.grad != 0).any(dim=2).sum(dim=(2, 3)) == int(0.15 * 20 * 30)).all()


def test_half_precision_logits_are_computed_in_float32():
    logits, target, selector = random_clip()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = clip_loss(logits.bfloat16(), target, selector, fraction=0.5)
    assert loss.dtype == torch.float32
    assert loss == clip_loss(logits.bfloat16().float(), target, selector, fraction=0.5)


def test_fraction_falls_linearly():
    found = [hardest_fraction(iteration) for iteration in (19_999, 20_000, 32_500, 69_999, 70_000, 300_000)]
    assert found == pytest.approx([1, 1, 1 - 0.85 / 4, 0.15 + 0.85 / 50_000, 0.15, 0.15])


def test_iou_adds_up_over_steps():
    torch.manual_seed(0)
    prediction, target = torch.randint(3, (2, 4, 2, 9, 9))
    target[3:] = target[3:].clamp(max=1)
    probabilities = F.one_hot(prediction, 3).permute(0, 1, 4, 2, 3).float()
    totals = sum(intersection_and_union(p, t) for p, t in zip(probabilities.split(1), target.split(1), strict=True))
    for k in (1, 2):
        a, b = prediction == k, target == k
        assert iou(totals)[k - 1].item() == pytest.approx(((a & b).sum() / (a | b).sum()).item())


def test_iou_of_nothing_is_one():
    assert iou(torch.zeros(2, 2, dtype=torch.int64)).tolist() == [1, 1]


def test_nothing_depends_on_values_of_the_device():
    """On the meta device tensors have no values, so that whatever would wait for a GPU raises."""
    logits, target, selector = (tensor.to('meta') for tensor in random_clip())
    loss = clip_loss(logits.requires_grad_(), target, selector, fraction=0.15)
    loss.backward()
    assert loss.shape == ()
    assert iou(intersection_and_union(logits, target)).shape == (2,)
