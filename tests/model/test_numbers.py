"""Results and gradients are finite in every precision, with keys of 1e4, probabilities of exactly 0 and 1, and
saturated logits."""

import itertools
import math

import pytest
import torch

from inference.confidence import expected_iou
from inference.core import InferenceCore
from inference.memory_bank import MemoryBank
from model.aggregate import aggregate
from model.clip import segment_clip
from model.losses import bootstrapped_cross_entropy, clip_loss
from model.memory import read_dense
from tests.conftest import make_small_network

pytestmark = pytest.mark.usefixtures('one_thread')

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LARGE = 1e4
T, K, Ck, Cv, h, w = 4, 3, 64, 8, 4, 6


def keys_of(kind: str, *shape: int) -> torch.Tensor:
    """``random``: each key of its own; ``equal``: all the same; ``near``: nearly so, as in a still video."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(*shape, generator=generator)
    return {'random': keys, 'equal': torch.ones(shape), 'near': 1 + 1e-3 * keys}[kind] * LARGE


@pytest.mark.parametrize('kind', ['random', 'equal', 'near'])
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('metric', ['l2', 'dot'])
def test_the_sparse_and_the_full_read(kind, dtype, metric):
    """Values that are all 3 give a readout of 3, so the weights are finite and sum to one."""
    keys = keys_of(kind, T + 1, K, Ck, h, w).to(dtype)
    for shared, top_k, sigma in itertools.product((True, False), (1, 5, None), (None, 7.0, 1e-3)):
        bank = MemoryBank(shared_keys=shared, top_k=top_k, metric=metric, kernel_sigma=sigma, max_frames=2)
        for t in range(T):
            bank.add(keys[t, : 1 if shared else K], torch.full((K, Cv, h, w), 3.0, dtype=dtype))
            readout = bank.read(keys[T, 0])
            assert readout.dtype == dtype
            torch.testing.assert_close(readout, torch.full_like(readout, 3), rtol=0.02, atol=0)
        assert bank.eviction._weight.isfinite().all()


@pytest.mark.parametrize('kind', ['random', 'equal', 'near'])
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('metric', ['l2', 'dot'])
@pytest.mark.parametrize('own_keys', [1, K])
def test_the_read_of_training_and_its_gradients(kind, dtype, metric, own_keys):
    keys = keys_of(kind, 2, own_keys, Ck, T, h, w).to(dtype).requires_grad_()
    query = keys_of(kind, 2, Ck, h, w).to(dtype).requires_grad_()
    values = torch.randn(2, K, Cv, T, h, w, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype is torch.bfloat16):
        readout = read_dense(keys, values, query, metric=metric)
    assert readout.isfinite().all()
    assert readout.abs().amax() <= 1.02 * values.abs().amax()
    readout.float().square().mean().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (keys, query, values))
    assert values.grad.any()


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('objects', [1, 2, 50])
def test_aggregation_of_certain_probabilities(dtype, objects):
    """0 and 1 together, beside values near them and one half, give a finite gradient."""
    values = torch.tensor([0, 1, 1e-8, 1 - 1e-7, 0.5, 0.9], dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    mixed = values[torch.randint(len(values), (1, objects, 20, 20), generator=generator)]
    uniform = values.repeat_interleave(10)[None, None, None].expand(1, objects, 1, -1)
    for prob in (mixed, uniform.clone()):
        prob.requires_grad_()
        logits = aggregate(prob)
        assert logits.dtype == torch.float32
        total = logits.softmax(dim=1)
        assert total.isfinite().all()
        torch.testing.assert_close(total.sum(dim=1), torch.ones_like(total[:, 0]))
        (total * torch.randn(total.shape, generator=generator)).sum().backward()
        assert prob.grad.isfinite().all()


def test_aggregation_of_certain_probabilities_is_certain():
    nothing, everything = torch.zeros(1, 50, 1, 1), torch.ones(1, 50, 1, 1)
    one = nothing.clone()
    one[0, 7] = 1
    for prob, expected in ((nothing, 0), (one, 8)):
        total = aggregate(prob).softmax(dim=1).flatten()
        assert total.argmax() == expected
        assert total[expected] > 1 - 1e-4
    total = aggregate(everything).softmax(dim=1).flatten()
    assert total[0] < 1e-8
    torch.testing.assert_close(total[1:], torch.full((50,), 0.02))


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('fraction', [1.0, 0.575, 0.15, 0.001])
@pytest.mark.parametrize('targets', ['background', 'objects', 'mixed', 'wrong'])
def test_the_loss_of_saturated_logits(dtype, fraction, targets):
    """Logits of +-1e4 predict a target that is background, objects or both with certainty, or wrong labels."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(3, (3, 16, 16), generator=generator)
    target = {'background': torch.zeros_like(truth), 'objects': 1 + truth % 2}.get(targets, truth)
    selector = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    target[2] = target[2].clamp(max=1)
    chosen = (target + 1) % 2 if targets == 'wrong' else target
    logits = torch.where(torch.nn.functional.one_hot(chosen, 3).permute(0, 3, 1, 2) > 0, LARGE, -LARGE).to(dtype)
    logits.requires_grad_()
    loss = bootstrapped_cross_entropy(logits, target, selector, fraction=fraction)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2 * LARGE if targets == 'wrong' else 0, rel=0.01, abs=1e-6)
    loss.backward()
    assert logits.grad.isfinite().all()


def test_a_fraction_of_very_few_pixels_is_one_of_them():
    loss = bootstrapped_cross_entropy(
        torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64), torch.ones(1, 1), fraction=0.15
    )
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ('amp', 'sure_of'),
    [(None, LARGE), (None, -LARGE), (torch.bfloat16, LARGE), (torch.bfloat16, -LARGE), (torch.float16, LARGE)],
)
def test_a_network_that_is_sure_of_everything_can_be_trained(amp, sure_of):
    """With keys of 1e4 and logits of +-1e4 in a whole clip, loss and gradients are finite."""
    network = extreme(make_small_network(), sure_of).train()
    generator = torch.Generator().manual_seed(0)
    rgb = torch.randn(2, 3, 3, 32, 48, generator=generator)
    masks = (torch.rand(2, 2, 32, 48, generator=generator) > 0.7).float()
    selector = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    target = torch.zeros(2, 2, 32, 48, dtype=torch.int64)
    with torch.autocast('cpu', amp, enabled=amp is not None):
        logits = segment_clip(network, rgb, masks, selector)
    loss = clip_loss(logits, target, selector, fraction=0.15)
    assert loss.isfinite()
    loss.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('options', [{}, {'top_k': None}, {'kernel_sigma': 7, 'max_memory_frames': 2}])
def test_a_video_of_fifty_objects_with_large_keys(clip, amp, options):
    network = extreme(make_small_network(), 0)
    core = InferenceCore(network, amp=amp, mem_every=1, **options)
    mask = (torch.arange(40)[:, None] // 8 * 10 + torch.arange(60) // 6 + 1).byte()
    for t, image in enumerate(clip[:3]):
        prob = core.step(image[:, 40:80, 60:120], mask if t == 0 else None)
        torch.testing.assert_close(prob.sum(dim=0), torch.ones(40, 60))
        assert all(0 <= value <= 1 + 1e-6 for value in expected_iou(prob).tolist())
    assert len(core.objects) == 50


def extreme(network: torch.nn.Module, bias: float) -> torch.nn.Module:
    """Scale the network's keys to 1e4 and shift its logits by ``bias``."""
    with torch.no_grad():
        key = network.encode_query(torch.randn(1, 3, 32, 48)).key
        for parameter in network.key_proj.parameters():
            parameter *= LARGE / key.abs().max()
        network.decoder.pred.bias += bias
    return network
