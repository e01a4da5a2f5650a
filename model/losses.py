"""Bootstrapped cross entropy (supplementary F.5) and the running IoU.

Nothing here waits for the device: no ``.item()``, no shape that depends on values.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def hardest_fraction(
    iteration: int, full_until: int = 20_000, final_at: int = 70_000, *, final: float = 0.15
) -> float:
    """The share of pixels that count at an iteration, p in the paper, from 0 to 1.

    All pixels count up to iteration ``full_until``. Then p falls linearly to ``final`` at iteration ``final_at``: only
    the hardest pixels, those with the largest loss, count.
    """
    progress = (iteration - full_until) / max(1, final_at - full_until)
    return 1 - (1 - final) * min(max(progress, 0.0), 1.0)


def bootstrapped_cross_entropy(logits: Tensor, target: Tensor, selector: Tensor, *, fraction: float) -> Tensor:
    """Mean cross entropy of each sample's hardest pixels, averaged over the samples; float32 throughout.

    Args:
        logits: [B, K+1, H, W], aggregated: background and K objects.
        target: int64 [B, H, W], 0 .. K; never an object that the selector excludes.
        selector: [B, K], 1 where the sample has the object. The other logits count as if they were not there.
        fraction: the share of each sample's pixels that count, floor(fraction * H * W) pixels but at least one; see
            ``hardest_fraction``.

    Returns:
        A scalar.
    """
    absent = F.pad(selector < 0.5, (1, 0))  # the background is always there
    logits = logits.float().masked_fill(absent[:, :, None, None], -torch.inf)
    losses = F.cross_entropy(logits, target, reduction='none').flatten(1)
    if fraction < 1:
        losses = losses.topk(max(1, int(fraction * losses.shape[1])), dim=1, sorted=False).values
    return losses.mean()


def clip_loss(logits: Tensor, target: Tensor, selector: Tensor, *, fraction: float) -> Tensor:
    """The loss of a clip: the sum of ``bootstrapped_cross_entropy`` over its predicted frames.

    Args:
        logits: [B, T, K+1, H, W] of the predicted frames, which are all but the first one.
        target: int64 [B, T, H, W] of the same frames.

    Returns:
        A scalar.
    """
    frames = logits.shape[1]
    selector = selector.repeat_interleave(frames, dim=0)
    mean = bootstrapped_cross_entropy(logits.flatten(0, 1), target.flatten(0, 1), selector, fraction=fraction)
    return frames * mean


@torch.no_grad()
def intersection_and_union(probabilities: Tensor, target: Tensor) -> Tensor:
    """Pixels in the intersection and in the union of each object with its target, [2, K] int64.

    Add these up over steps (and processes) and give the sum to ``iou`` when it is time to log.

    Args:
        probabilities: [B, T, K+1, H, W], or logits. Each pixel belongs to the object with the largest value.
        target: int64 [B, T, H, W].
    """
    objects = torch.arange(1, probabilities.shape[2], device=target.device)[:, None, None, None, None]
    most = probabilities.max(dim=2).indices  # the same as argmax, which takes ten times as long on a CPU
    predicted, actual = most == objects, target == objects
    return torch.stack([predicted & actual, predicted | actual]).sum(dim=(2, 3, 4, 5))


def iou(totals: Tensor) -> Tensor:
    """[2, K] sums of ``intersection_and_union`` -> IoU of each object [K], 1 where neither had a pixel."""
    intersection, union = totals
    return torch.where(union > 0, intersection / union, 1.0)
