"""Draws samples, frames and objects for training.

Everything random about a sample is a function of its address, (seed, epoch, index), and workers keep no state. So a
sample is the same whether a run is resumed or not, on any number of processes, and with any number of accumulation
steps.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset, Sampler

from dataset.io import DataError

log = logging.getLogger(__name__)

MAX_FAILURES = 10


class Address(NamedTuple):
    """All that a dataset needs to know to make one sample."""

    seed: int
    epoch: int
    index: int  # type: ignore[assignment]  # it hides the method of a tuple, which nobody needs here
    max_skip: int = 5
    """In frames of the video. Frames are drawn with it, but the random generator does not depend on it."""

    def generator(self) -> np.random.Generator:
        """A fresh generator that depends on (seed, epoch, index) only."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.epoch, self.index)))


@lru_cache(maxsize=2)  # a batch touches two epochs at most, unless the dataset is smaller than the batch
def epoch_order(size: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits a dataset: a permutation of range(size), fixed by (seed, epoch)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,))).permutation(size)


def max_skip_at(iteration: int, *, iterations: int, schedule: Sequence[tuple[int, int]]) -> int:
    """The curriculum (supplementary F.4): the max-skip in force at an iteration.

    ``schedule``: pairs (percent of all iterations, max-skip from there on), ascending, the first at 0 percent.
    """
    return [skip for percent, skip in schedule if 100 * iteration >= percent * iterations][-1]


def check_batch(batch_size: int, *, accumulation: int, world_size: int) -> None:
    """Raises ``ValueError`` if a global batch does not divide among processes and accumulation steps."""
    if batch_size < 1 or batch_size % (world_size * accumulation):
        raise ValueError(
            f'expected a global batch that divides among {world_size} processes x {accumulation} accumulation '
            f'steps, found {batch_size}. Choose a multiple of {world_size * accumulation}.'
        )


class AddressSampler(Sampler[list[Address]]):
    """This process's share of every global batch, as the ``batch_sampler`` of a DataLoader.

    The samples form one endless stream, epoch after epoch; iteration i takes the positions from i * batch_size on,
    whatever the number of processes and accumulation steps. An iteration is ``accumulation`` consecutive lists of
    equal length. One pass over the sampler goes to the end of the training, so that workers never restart.

    Args:
        size: samples in the dataset.
        batch_size: of all processes and accumulation steps together.
        iterations: the iteration to stop before; it also scales the schedule.
        start: the first iteration, to resume.
        schedule: see ``max_skip_at``.

    Raises:
        ValueError: the batch does not divide among processes and accumulation steps; the dataset is empty.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        iterations: int,
        seed: int = 0,
        start: int = 0,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
        schedule: Sequence[tuple[int, int]] = ((0, 5),),
    ) -> None:
        if size < 1:
            raise ValueError('expected at least one sample to draw from, found none')
        check_batch(batch_size, accumulation=accumulation, world_size=world_size)
        self.size, self.seed = size, seed
        self.batch_size, self.accumulation = batch_size, accumulation
        self.start, self.iterations = start, iterations
        self.rank, self.world_size = rank, world_size
        self.schedule = tuple(schedule)

    def global_batch(self, iteration: int) -> list[Address]:
        """The addresses of one iteration on all processes together, ``batch_size`` of them."""
        skip = max_skip_at(iteration, iterations=self.iterations, schedule=self.schedule)
        positions = range(iteration * self.batch_size, (iteration + 1) * self.batch_size)
        return [
            Address(self.seed, epoch, int(epoch_order(self.size, seed=self.seed, epoch=epoch)[place]), skip)
            for epoch, place in (divmod(position, self.size) for position in positions)
        ]

    def __iter__(self) -> Iterator[list[Address]]:
        local = self.batch_size // self.world_size
        micro = local // self.accumulation
        for iteration in range(self.start, self.iterations):
            own = self.global_batch(iteration)[self.rank * local : (self.rank + 1) * local]
            yield from (own[i : i + micro] for i in range(0, local, micro))

    def __len__(self) -> int:
        return max(0, self.iterations - self.start) * self.accumulation


class AddressedDataset(Dataset):
    """A dataset whose samples are functions of an ``Address``. Subclasses define ``__len__`` and ``sample``.

    A sample that cannot be read is logged, once per process and message, and another one takes its place. That one is
    drawn from the same generator, so every run over the same files takes the same one.
    """

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def __len__(self) -> int:
        raise NotImplementedError

    def sample(self, index: int, rng: np.random.Generator, *, max_skip: int) -> dict[str, Any]:
        """One training sample; raises DataError if a file of it cannot be used."""
        raise NotImplementedError

    def __getitem__(self, address: Address) -> dict[str, Any]:
        """Raises DataError if ten samples in a row cannot be read."""
        rng, index = address.generator(), address.index
        for _ in range(MAX_FAILURES):
            try:
                return self.sample(index, rng, max_skip=address.max_skip)
            except DataError as error:
                last = error
                if str(error) not in self._logged:
                    self._logged.add(str(error))
                    log.warning('skipped, another sample takes its place: %s', error)
                index = int(rng.integers(len(self)))
        raise DataError(f'{MAX_FAILURES} samples in a row could not be read; the last one: {last}') from last


def sample_frames(n: int, max_skip: int, rng: np.random.Generator, *, count: int = 3) -> tuple[int, ...]:
    """Draw ``count`` frames of a video of n >= ``count`` frames, in order (supplementary F.3.2, F.4).

    The gaps between frames are uniform in 1 .. min(n, max_skip) + 1. A frame that would be near the end of the video
    or beyond it is moved back to a fixed distance from the end, so that not all such frames become the last ones. With
    three frames this is the paper's rule; with more, the distances from the end are divided evenly.

    Raises:
        ValueError: n < count or max_skip < 1.
    """
    if n < count or max_skip < 1:
        raise ValueError(f'expected {count} frames or more and a max-skip of 1 or more, found {n} and {max_skip}')
    jump = min(n, max_skip)
    drawn = [int(rng.integers(n - jump + 1))]
    for _ in range(1, count):
        drawn.append(drawn[-1] + 1 + int(rng.integers(jump + 1)))

    frames = [min(drawn[0], n - count)]
    for place in range(1, count):
        distance = jump * (count - place) // (count - 1)
        frames.append(min(drawn[place], max(n - distance, frames[-1] + 1), n - count + place))
    return tuple(frames)


def choose_objects(
    labels: np.ndarray, rng: np.random.Generator, *, limit: int = 2, discard_tiny: bool = False
) -> list[int]:
    """Draw at most ``limit`` objects that are visible in the first frame, in random order (supplementary F.3.2).

    Args:
        labels: uint8 [T, H, W], 0 is background.
        discard_tiny: BL30K's rule (F.3.3): an object must have more than 100 pixels in the first frame. If it has at
            most 900 there, it must have less than 400 in every other frame: then it is a small object, and not a large
            one that is nearly hidden in the first frame.
    """

    def count(frame: np.ndarray) -> np.ndarray:
        return np.bincount(frame.ravel(), minlength=256)

    first = count(labels[0])
    usable = first > 0
    if discard_tiny:
        stays_small = np.all([count(frame) < 400 for frame in labels[1:]], axis=0)
        usable = (first > 900) | ((first > 100) & stays_small)
    candidates = np.flatnonzero(usable[1:]) + 1
    return rng.permutation(candidates)[:limit].tolist()
