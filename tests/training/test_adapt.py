"""A network that adapts to a video."""

import itertools
import time

import pytest
import torch

from dataset.io import read_image, read_mask
from tests.conftest import FRAMES, GOLDEN, make_small_network
from training import adapt as module
from training.adapt import adapt


@pytest.fixture
def frames():
    return [(read_image(FRAMES[0]), read_mask(GOLDEN / 'first_mask.png'))]


@pytest.fixture
def a_second_an_iteration(monkeypatch):
    """The clock is asked once before the first iteration and once before each."""
    counter = itertools.count()
    monkeypatch.setattr(time, 'process_time', lambda: float(next(counter)))


def test_a_copy_learns_and_the_network_stays(frames, a_second_an_iteration, monkeypatch):
    monkeypatch.setattr(module, 'LEARNING_RATE', 1e-3)
    losses = []
    monkeypatch.setattr(module, '_loss', lambda *args, of=module._loss: losses.append(of(*args)) or losses[-1])
    network = make_small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    adapted = adapt(network, frames, seconds=31, crop_size=64)
    assert len(losses) == 30
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert not adapted.training
    after = adapted.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not torch.equal(after['decoder.pred.weight'], before['decoder.pred.weight'])
    assert all(value.isfinite().all() for value in after.values())


def test_the_same_iterations_give_the_same_network(frames, a_second_an_iteration):
    one, other = (adapt(make_small_network(), frames, seconds=4, crop_size=64).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
