"""A network that adapts to a video."""

import itertools
import time

import pytest
import torch

from dataset.io import read_image, read_mask
from inference.stream import TooLittleMemoryError
from tests.conftest import FRAMES, GOLDEN, make_small_network
from training import adapt as module
from training.adapt import Adapting, adapt
from training.loop import NotFiniteError


@pytest.fixture
def frames():
    return [(read_image(FRAMES[0]), read_mask(GOLDEN / 'first_mask.png'))]


@pytest.fixture(autouse=True)
def a_second_an_iteration(monkeypatch):
    """The clock is asked once before the first iteration and once before each. Clips are small."""
    counter = itertools.count()
    monkeypatch.setattr(time, 'process_time', lambda: float(next(counter)))
    monkeypatch.setattr(module, 'CROP_SIZE', 64)


def test_a_copy_learns_and_the_network_stays(frames, monkeypatch):
    monkeypatch.setattr(module, 'LEARNING_RATE', 1e-3)
    losses = []
    of = module.clip_loss_of
    monkeypatch.setattr(module, 'clip_loss_of', lambda *args: losses.append(of(*args)) or losses[-1])
    network = make_small_network()
    network.recommended = {'mem_every': 2}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    adapted = adapt(network, frames, seconds=31)
    assert len(losses) == 30
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert not adapted.training
    assert adapted.recommended == {'mem_every': 2}
    after = adapted.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not torch.equal(after['decoder.pred.weight'], before['decoder.pred.weight'])
    assert all(value.isfinite().all() for value in after.values())


def test_the_same_iterations_give_the_same_network(frames):
    one, other = (adapt(make_small_network(), frames, seconds=4).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_steps_say_how_much_of_the_time_is_spent(frames):
    adapting = Adapting(make_small_network(), frames)
    assert list(adapting.steps(4)) == [0.25, 0.5, 0.75]
    assert not adapting.network.training


def test_a_network_made_ready_for_inference_is_refused(frames):
    with pytest.raises(ValueError, match='expected one that can be trained'):
        adapt(make_small_network().optimize_(), frames)


def test_too_little_memory_is_an_error_of_one_line(frames, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(module, 'clip_loss_of', full)
    with pytest.raises(TooLittleMemoryError, match='out of GPU memory while the network adapts'):
        adapt(make_small_network(), frames, seconds=4)


def test_a_loss_that_is_not_finite_is_an_error(frames, monkeypatch):
    of = module.clip_loss_of
    monkeypatch.setattr(module, 'clip_loss_of', lambda *args: of(*args) * torch.nan)
    with pytest.raises(NotFiniteError, match='loss of iteration 1 is not finite'):
        adapt(make_small_network(), frames, seconds=4)
