"""The confidence of a network in the objects of a frame."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

NOT_SEEN = 1e-3
"""A fraction of the frame's area that is added to intersection and union. An absent object then has a value near 1,
and doubt about a few pixels hardly counts."""


def expected_iou(prob: Tensor) -> Tensor:
    """Estimate the intersection over union of each mask with the unknown ground truth, from the probabilities.

    ``prob [1 + K, H, W]``, the background first, ``-> [K]`` in (0, 1]. The mask of an object covers the pixels where
    it is the most probable label. The intersection is the sum of the object's probabilities in the largest connected
    part of its mask; other parts count as wrong, since they often appear when a network has lost the object. The union
    is the area of the mask plus the sum of the object's probabilities outside it. ``NOT_SEEN`` is added to both.

    This measure was chosen among some sixty on videos held aside; see docs/benchmarks.md.
    """
    K, (H, W) = len(prob) - 1, prob.shape[1:]
    labels = prob.max(dim=0).indices.cpu().numpy()
    inside = np.zeros((K, H, W), bool)
    largest = np.zeros((K, H, W), bool)
    for k in range(K):
        inside[k] = labels == k + 1
        _, parts, statistics, _ = cv2.connectedComponentsWithStats(inside[k].view(np.uint8))
        if len(statistics) > 1:  # the first one is the background
            largest[k] = parts == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax()
    of_objects, least = prob[1:], NOT_SEEN * H * W
    intersection = (of_objects * torch.from_numpy(largest).to(prob.device)).sum(dim=(1, 2))
    union = torch.where(torch.from_numpy(inside).to(prob.device), 1, of_objects).sum(dim=(1, 2))
    return (intersection + least) / (union + least)


def confidence_of(prob: Tensor, objects: Sequence[int]) -> dict[int, float]:
    """The :func:`expected_iou` of each object by its label; ``objects`` are the labels of ``prob[1:]``."""
    return dict(zip(objects, expected_iou(prob).tolist(), strict=True))
