"""How sure a network is of the objects of a frame."""

import cv2
import numpy as np
import torch
from torch import Tensor

NOT_SEEN = 1e-3
"""Of the frame's area: doubt about less than this hardly counts, so that an object that is surely not there has 1."""


def expected_iou(prob: Tensor) -> Tensor:
    """The intersection over union that the masks of a frame would have, were the probabilities true.

    ``prob [1 + K, H, W]``, the background first, ``-> [K]`` in (0, 1]. The mask of an object is where it is the most
    probable. What is right of it is the sum of the object's probabilities in its largest connected part: parts beside
    it are what a network takes for the object when it has lost it. The union is the mask and the probabilities around
    it. ``NOT_SEEN`` is added to both.

    This measure was chosen among some sixty on videos held aside, see docs/benchmarks.md.
    """
    K, (H, W) = len(prob) - 1, prob.shape[1:]
    labels = prob.argmax(dim=0).cpu().numpy()
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
