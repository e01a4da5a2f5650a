"""Frames and objects are drawn as the formula says, and by a sample's address alone."""

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from dataset.io import DataError
from dataset.sampling import (
    MAX_FAILURES,
    Address,
    AddressedDataset,
    AddressSampler,
    choose_objects,
    epoch_order,
    max_skip_at,
    sample_frames,
)

SCHEDULE = ((0, 5), (10, 10), (20, 15), (30, 20), (40, 25), (90, 5))


class Scripted:
    """Stands in for a generator: hands out given integers and counts the equally likely outcomes."""

    def __init__(self, values):
        self.values, self.outcomes = list(values), 1

    def integers(self, high):
        self.outcomes *= high
        value = self.values.pop(0)
        if value >= high:
            raise StopIteration
        return value


def exact_distribution(n: int, max_skip: int) -> Counter:
    """By the formula: s uniform in [0, n - j], both gaps 1 + uniform{0..j}, all moved back into the video."""
    j = min(n, max_skip)
    distribution = Counter()
    for s, gap_a, gap_b in itertools.product(range(n - j + 1), range(j + 1), range(j + 1)):
        a = s + 1 + gap_a
        b = a + 1 + gap_b
        s = min(s, n - 3)
        a = min(a, max(n - j, s + 1), n - 2)
        b = min(b, max(n - j // 2, a + 1), n - 1)
        distribution[s, a, b] += Fraction(1, (n - j + 1) * (j + 1) ** 2)
    return distribution


@pytest.mark.parametrize(('n', 'max_skip'), [(3, 1), (3, 5), (4, 3), (6, 5), (9, 25), (12, 5)])
def test_frames_follow_the_formula_exactly(n, max_skip):
    found = Counter()
    for values in itertools.product(range(n + 1), repeat=3):
        rng = Scripted(values)
        try:
            frames = sample_frames(n, max_skip, rng)
        except StopIteration:
            continue
        found[frames] += Fraction(1, rng.outcomes)
    assert found == exact_distribution(n, max_skip)
    assert all(0 <= s < a < b <= n - 1 for s, a, b in found)


@pytest.mark.parametrize(('n', 'max_skip'), [(5, 2), (20, 5), (70, 25)])
def test_histogram_of_gaps(n, max_skip):
    draws = 20_000
    rng = np.random.default_rng(0)
    expected, found = Counter(), Counter()
    for (s, a, b), p in exact_distribution(n, max_skip).items():
        expected[a - s, b - a] += float(p)
    for _ in range(draws):
        s, a, b = sample_frames(n, max_skip, rng)
        found[a - s, b - a] += 1
    assert found.keys() <= expected.keys()
    for gaps, p in expected.items():
        assert abs(found[gaps] - draws * p) < 5 * np.sqrt(draws * p) + 1


def test_gaps_are_uniform_in_a_long_video():
    distribution = exact_distribution(100, 5)
    for gap in range(1, 7):
        assert abs(sum(p for (s, a, _), p in distribution.items() if a - s == gap) - Fraction(1, 6)) < 0.02
        assert abs(sum(p for (_, a, b), p in distribution.items() if b - a == gap) - Fraction(1, 6)) < 0.03


@pytest.mark.parametrize(('n', 'max_skip'), [(2, 5), (10, 0)])
def test_frames_of_too_short_a_video(n, max_skip):
    with pytest.raises(ValueError, match='expected 3 frames'):
        sample_frames(n, max_skip, np.random.default_rng(0))


def test_objects_are_drawn_uniformly_from_the_first_frame():
    labels = np.zeros((3, 4, 8), np.uint8)
    labels[0, 0, :3] = 2, 5, 9
    labels[1] = 7
    rng = np.random.default_rng(0)
    found = Counter(tuple(choose_objects(labels, rng)) for _ in range(6000))
    assert found.keys() == set(itertools.permutations((2, 5, 9), 2))
    assert all(abs(count - 1000) < 150 for count in found.values())
    assert choose_objects(labels[1:2] * 0, rng) == []
    assert choose_objects(labels[1:], rng) == [7]


@pytest.mark.parametrize(
    ('first', 'later', 'kept'),
    [(100, 50, False), (101, 399, True), (101, 400, False), (900, 399, True), (900, 400, False), (901, 400, True)],
)
def test_tiny_objects_of_bl30k(first, later, kept):
    labels = np.zeros((3, 40, 40), np.uint8)
    for frame, area in zip(labels, (first, 10, later), strict=True):
        frame.reshape(-1)[:area] = 3
    rng = np.random.default_rng(0)
    assert choose_objects(labels, rng, discard_tiny=True) == ([3] if kept else [])
    assert choose_objects(labels, rng) == [3]


def test_address_is_all_there_is_to_the_randomness():
    def draw(address):
        return address.generator().integers(2**62)

    assert draw(Address(1, 2, 3, max_skip=5)) == draw(Address(1, 2, 3, max_skip=25))
    addresses = [Address(*where) for where in itertools.product(range(4), repeat=3)]
    assert len({draw(address) for address in addresses}) == len(addresses)


def test_epoch_orders_are_permutations_that_differ():
    first, second = (epoch_order(50, seed=0, epoch=epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50))
    assert (first != second).any()
    assert (first != epoch_order(50, seed=1, epoch=0)).any()


@pytest.mark.parametrize('size', [5, 23, 64])
@pytest.mark.parametrize(('world_size', 'accumulation'), [(1, 1), (2, 1), (1, 4), (2, 2), (8, 1)])
def test_global_batches_do_not_depend_on_processes_and_accumulation(size, world_size, accumulation):
    options = {'batch_size': 8, 'iterations': 20, 'seed': 3, 'schedule': SCHEDULE}
    expected = list(AddressSampler(size, **options))
    ranks = [
        AddressSampler(size, rank=rank, world_size=world_size, accumulation=accumulation, **options)
        for rank in range(world_size)
    ]
    streams = [list(sampler) for sampler in ranks]
    assert all(len(stream) == len(sampler) for stream, sampler in zip(streams, ranks, strict=True))
    for iteration, batch in enumerate(expected):
        steps = slice(iteration * accumulation, (iteration + 1) * accumulation)
        assert [address for stream in streams for micro in stream[steps] for address in micro] == batch


def test_stream_visits_every_sample_once_an_epoch_and_resumes_anywhere():
    options = {'batch_size': 4, 'iterations': 25, 'schedule': SCHEDULE}
    batches = list(AddressSampler(10, **options))
    visits = Counter((address.epoch, address.index) for batch in batches for address in batch)
    assert visits == Counter(itertools.product(range(10), range(10)))
    assert list(AddressSampler(10, start=17, **options)) == batches[17:]
    assert [batch[0].max_skip for batch in batches[:13:3]] == [5, 10, 15, 20, 25]
    assert batches[-1][0].max_skip == 5


def test_max_skip_changes_on_the_iteration():
    at = [max_skip_at(i, iterations=150_000, schedule=SCHEDULE) for i in (0, 14_999, 15_000, 134_999, 135_000)]
    assert at == [5, 5, 10, 25, 5]


def test_a_batch_that_does_not_divide():
    with pytest.raises(ValueError, match='multiple of 6'):
        AddressSampler(10, batch_size=8, iterations=1, world_size=3, accumulation=2)
    with pytest.raises(ValueError, match='at least one sample'):
        AddressSampler(0, batch_size=8, iterations=1)


class Numbers(AddressedDataset):
    """Sample i is i; some cannot be read."""

    def __init__(self, size, broken):
        super().__init__()
        self.size, self.broken, self.calls = size, broken, 0

    def __len__(self):
        return self.size

    def sample(self, index, rng, *, max_skip):
        self.calls += 1
        if index in self.broken:
            raise DataError(f'{index}.jpg is broken')
        return {'index': index}


def test_a_broken_sample_is_replaced_deterministically_and_logged_once(caplog):
    dataset = Numbers(20, broken={3, 4, 5})
    first = [dataset[Address(0, epoch, 3)]['index'] for epoch in range(30)]
    assert sum('3.jpg is broken' in record.message for record in caplog.records) == 1
    again = [dataset[Address(0, epoch, 3)]['index'] for epoch in range(30)]
    assert first == again
    assert len(set(first)) > 5
    assert not {3, 4, 5} & set(first)


def test_too_many_broken_samples_end_the_training():
    dataset = Numbers(20, broken=set(range(20)))
    with pytest.raises(DataError, match='10 samples in a row'):
        dataset[Address(0, 0, 0)]
    assert dataset.calls == MAX_FAILURES
