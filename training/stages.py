"""The training stages as data (supplementary F.1, F.3, F.4). Imports no torch, since ``--help`` shows the table."""

from dataclasses import dataclass

MAIN_MAX_SKIP = ((0, 5), (10, 10), (20, 15), (30, 20), (40, 25), (90, 5))
BL30K_MAX_SKIP = ((0, 5), (10, 10), (20, 15), (30, 20), (40, 25), (80, 5))


@dataclass(frozen=True)
class Stage:
    """What a stage trains on, and for how long. Flags of ``train.py`` replace single values."""

    data: str  # see dataset.training.open_training_set
    batch_size: int  # of all processes together
    iterations: int
    steps: tuple[int, ...]  # iterations at which the rate is multiplied by gamma
    max_skip: tuple[tuple[int, int], ...] = ((0, 5),)  # (percent of the iterations, max-skip from there on)
    lr: float = 1e-5
    gamma: float = 0.1
    warmup: int = 0  # iterations in which the rate rises linearly
    bootstrap: tuple[int, int] = (20_000, 70_000)  # see model.losses.hardest_fraction

    def rate(self, iteration: int) -> float:
        """The learning rate of an iteration, counted from 0."""
        rise = min(1.0, (iteration + 1) / (self.warmup + 1))
        return rise * self.lr * self.gamma ** sum(step <= iteration for step in self.steps)


STAGES = {
    0: Stage('static', 16, 300_000, (150_000,)),
    1: Stage('bl30k', 8, 500_000, (450_000,), BL30K_MAX_SKIP),
    2: Stage('main', 8, 300_000, (250_000,), MAIN_MAX_SKIP),  # after BL30K
    3: Stage('main', 8, 150_000, (125_000,), MAIN_MAX_SKIP),  # after stage 0
}
