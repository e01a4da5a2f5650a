"""The training loop."""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dataset.sampling import max_skip_at
from model.clip import ClipNetwork
from model.losses import clip_loss, hardest_fraction
from training.evaluation import Validation
from training.report import Report
from training.run import Run
from training.stages import Stage
from training.state import TrainingState
from util.distributed import any_process, gather, world_size
from util.errors import UserError
from util.stop import StopRequest


class NotFiniteError(UserError, FloatingPointError):
    """The loss or a weight is not finite any more, so that training cannot go on."""


def train(
    state: TrainingState,
    batches: Iterator[dict],
    stage: Stage,
    run: Run,
    report: Report,
    *,
    device: torch.device,
    accumulation: int = 1,
    amp_dtype: torch.dtype | None = None,
    clip_norm: float | None = None,
    recompute: bool = False,
    validation: Validation | None = None,
    log_every: int = 50,
    images_every: int = 500,
    save_every: int = 1000,
    keep_every: int | None = None,
) -> int:
    """Train from ``state.iteration`` to the end of the stage; checkpoints go to ``run``, losses to ``report``.

    Args:
        batches: ``accumulation`` micro-batches of equal size for each iteration, as the datasets make them.
        amp_dtype: the type for automatic mixed precision; ``None`` trains in float32.
        clip_norm: largest norm of the gradient of all weights together; ``None`` for no bound.
        recompute: see :func:`model.clip.segment_clip`; slower, for less memory.
        validation: what evaluates the state now and then; a checkpoint is written before each evaluation.
        save_every: iterations between checkpoints; the newest ones are kept.
        keep_every: iterations between checkpoints that stay for good; ``None``: there are none.

    Returns:
        0, or the signal (SIGTERM or SIGINT) that ended the training early; the state is then saved. It is enough that
        one of the processes gets the signal.

    Raises:
        NotFiniteError: the loss or a weight is not finite any more.
    """
    model = parallel(ClipNetwork(state.network.train(), recompute=recompute), device)
    optimizer, scaler = state.optimizer, state.scaler
    with StopRequest() as stop:
        stopping = False
        if validation and validation.due(state.iteration, last=state.iteration == stage.iterations):
            stopping = validation.run(state, run, report, stop)  # an earlier process may have been killed before this
        while state.iteration < stage.iterations and not stopping:
            rate = stage.rate(state.iteration)
            fraction = hardest_fraction(state.iteration, *stage.bootstrap)
            for group in optimizer.param_groups:
                group['lr'] = rate

            for part in range(1, accumulation + 1):
                batch = to_device(next(batches), device)
                target, selector = batch['target'][:, 1:], batch['selector']
                # Processes exchange gradients once an iteration.
                more = part < accumulation
                with model.no_sync() if more and isinstance(model, DistributedDataParallel) else nullcontext():
                    with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
                        logits = model(batch['rgb'], batch['masks'][:, 0].float(), selector)
                    loss = clip_loss(logits, target, selector, fraction=fraction)
                    scaler.scale(loss / accumulation).backward()
                report.add(loss, logits, target)
            if clip_norm is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(state.network.parameters(), clip_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if state.average:
                state.average.update(state.network)
            state.iteration += 1

            last, stopping = state.iteration == stage.iterations, any_process(stop.signal > 0)
            log_now = last or state.iteration % log_every == 0
            evaluate_now = validation is not None and validation.due(state.iteration, last=last)
            keep_now = keep_every is not None and state.iteration % keep_every == 0
            save_now = last or stopping or evaluate_now or keep_now or state.iteration % save_every == 0
            report.bar.update()
            if log_now or save_now:
                check_finite(state, run, report)
            if log_now:
                skip = max_skip_at(state.iteration - 1, iterations=stage.iterations, schedule=stage.max_skip)
                report.write(state.iteration, {'lr': rate, 'p': fraction, 'max_skip': skip})
            if state.iteration % images_every == 0:
                report.images(state.iteration, batch['rgb'], batch['target'], logits)
            if save_now:
                run.save(state.content(), for_good=keep_now)
            if validation and evaluate_now and not stopping:
                stopping = validation.run(state, run, report, stop)
    return max(gather(stop.signal))


def parallel(model: ClipNetwork, device: torch.device) -> ClipNetwork | DistributedDataParallel:
    """The model with gradients averaged over all processes; the model itself for a single one."""
    if world_size() == 1:
        return model
    # Batch norm's statistics are frozen: there are no buffers to keep equal.
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == 'cuda' else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )


def to_device(batch: dict, device: torch.device) -> dict:
    """Move the tensors of a batch to the device, and leave out the names of its samples."""
    return {
        name: value.to(device, non_blocking=True) for name, value in batch.items() if isinstance(value, torch.Tensor)
    }


def check_finite(state: TrainingState, run: Run, report: Report) -> None:
    """Raise an error if the loss or a weight is not finite, before a checkpoint is written.

    The loss alone is not enough, since it was computed with the weights before the last step.
    """
    weights = torch.stack([parameter.detach().isfinite().all() for parameter in state.network.parameters()])
    if any_process(not (report.finite() and bool(weights.all()))):
        place = run.save_broken(state.content())
        raise NotFiniteError(
            f'iteration {state.iteration}: the loss or a weight is not finite any more. The state of that '
            f'moment: {place}. The checkpoints are from before: resume the run from them, perhaps with a lower '
            'learning rate. Debugging names the operation that is to blame.',
            options=['resume', 'lr', 'debug'],
        )
