"""Reports the progress of a run: a bar on a terminal or lines elsewhere, and curves and images in TensorBoard."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset.overlay import draw_sample
from model.losses import intersection_and_union, iou
from util.distributed import rank, sum_over_processes, world_size

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

IMAGE_ROWS = 4


class Report:
    """Sums loss and IoU on the device, so that ``add`` never waits for it; ``write`` also waits for other processes.

    Args:
        folder: where the events for TensorBoard go; with ``None``, none are written.
        start: number of iterations that are done already.
        iterations: number of all iterations of the run.
    """

    def __init__(self, folder: Path | None, *, start: int, iterations: int):
        self.writer = None
        if folder is not None and rank() == 0:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

            self.writer = SummaryWriter(str(folder), purge_step=start + 1)
        self.on_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=iterations, initial=start, disable=rank() != 0 or not self.on_terminal, dynamic_ncols=True
        )
        self._begin(start)

    def _begin(self, iteration: int) -> None:
        self.first, self.since = iteration, time.perf_counter()
        self.batches = 0
        self.loss = torch.zeros((), dtype=torch.double)  # sum over micro-batches
        self.areas = torch.zeros((), dtype=torch.long)  # [2, K]: intersections and unions of the objects

    def add(self, loss: Tensor, logits: Tensor, target: Tensor) -> None:
        """Add a micro-batch's scalar loss and IoU, ``logits [B, T, K+1, H, W], target [B, T, H, W]``."""
        self.batches += 1
        exact = torch.float if loss.device.type == 'mps' else torch.double  # a Mac's GPU has no double precision
        self.loss = self.loss.to(exact) + loss.detach().to(exact)
        self.areas = self.areas + intersection_and_union(logits.detach(), target)

    def finite(self) -> bool:
        """Whether all losses since the last ``write`` are finite; waits for the device."""
        return bool(self.loss.isfinite())

    def write(self, iteration: int, scalars: dict[str, float]) -> None:
        """Write the mean loss and IoU of all processes since the last ``write``, and other ``scalars``."""
        loss = sum_over_processes(self.loss) / self.batches / world_size()
        areas = sum_over_processes(self.areas)
        overlap = {f'iou_{k}': value for k, value in enumerate(iou(areas).tolist(), 1) if areas[1, k - 1] > 0}
        elapsed = time.perf_counter() - self.since
        rate = (iteration - self.first) / elapsed
        values = {'loss': loss.item()} | overlap | scalars
        self._begin(iteration)
        if self.writer:
            with _writing(self.writer):
                for name, value in values.items() | {('iterations_per_second', rate)}:
                    self.writer.add_scalar(f'train/{name}', value, iteration)
        shown = {name: f'{value:.4g}' for name, value in values.items()}
        if self.on_terminal:
            self.bar.set_postfix(shown, refresh=False)
        elif rank() == 0:
            left = tqdm.format_interval((self.bar.total - iteration) / rate)
            log.info(
                '%d/%d  %s  %.3g it/s  %s left',
                iteration,
                self.bar.total,
                '  '.join(f'{name} {value}' for name, value in shown.items()),
                rate,
                left,
            )

    def images(self, iteration: int, rgb: Tensor, target: Tensor, logits: Tensor) -> None:
        """Write some samples, one per row: all frames with their targets, then the later ones with their predictions.

        ``rgb [B, T, 3, H, W], target [B, T, H, W], logits [B, T-1, K+1, H, W]``.
        """
        if self.writer is None:
            return
        predicted = logits.detach().argmax(dim=2)
        rows = []
        for frames, truth, guess in zip(
            *(each[:IMAGE_ROWS].cpu().numpy() for each in (rgb, target, predicted)), strict=True
        ):
            rows.append(
                np.concatenate(
                    [draw_sample(*frame) for frame in zip(frames, truth, strict=True)]
                    + [draw_sample(*frame) for frame in zip(frames[1:], guess, strict=True)],
                    axis=1,
                )
            )
        with _writing(self.writer):
            self.writer.add_image('train/target_and_prediction', np.concatenate(rows), iteration, dataformats='HWC')

    def evaluation(self, found: dict, best: dict, *, seconds: float) -> None:
        """Write the scores that ``Validation`` found on the videos held aside, and the seconds that it took."""
        self.since += seconds  # so that the rate counts training only
        if self.writer:
            with _writing(self.writer):
                for name, each in {'all': found, **found['videos']}.items():
                    for measure in ('J', 'F', 'J&F'):
                        self.writer.add_scalar(f'evaluation/{name}/{measure}', 100 * each[measure], found['iteration'])
        if rank() == 0:
            self.bar.clear()
            log.info(
                'evaluation after iteration %d: J&F %.2f in %.0f s; the best is %.2f after iteration %d',
                found['iteration'],
                100 * found['J&F'],
                seconds,
                100 * best['J&F'],
                best['iteration'],
            )
            width = max(map(len, found['videos']))
            for name, each in found['videos'].items():
                log.info('  %-*s  J %5.2f  F %5.2f', width, name, 100 * each['J'], 100 * each['F'])

    def __enter__(self) -> 'Report':
        return self

    def __exit__(self, error_type, *_) -> None:
        self.bar.close()
        if self.writer:
            with suppress(OSError) if error_type else _writing(self.writer):
                self.writer.close()


@contextmanager
def _writing(writer: 'SummaryWriter') -> Iterator[None]:
    """Name the folder in an OSError. TensorBoard writes in a thread, so the error comes late and without a file."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f'{writer.log_dir}: events for TensorBoard cannot be written ({error.strerror}). Make '
            'room, and resume the run.'
        ) from error
