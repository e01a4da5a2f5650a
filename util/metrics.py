"""The DAVIS measures: region similarity J, boundary accuracy F, and their statistics over a sequence.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation" (CVPR 2016),
with the definitions of the official toolkit to the last digit.
"""

import math
from functools import lru_cache

import numpy as np

Scores = dict[int, dict[str, dict[str, float]]]
"""Of a video: label -> 'J' or 'F' -> name of a frame -> value."""


def region_similarity(truth: np.ndarray, result: np.ndarray) -> float:
    """J: intersection over union of two bool masks [H, W], in [0, 1]. Two empty masks agree: 1."""
    union = np.count_nonzero(truth | result)
    return np.count_nonzero(truth & result) / union if union else 1.0


def boundary_accuracy(truth: np.ndarray, result: np.ndarray, *, tolerance: float = 0.008) -> float:
    """F: harmonic mean of the precision and recall of the boundary of ``result``, in [0, 1].

    A boundary pixel counts where the other boundary comes within ``tolerance`` times the image diagonal, rounded
    up to pixels. Two empty boundaries agree: 1; if only one is empty, F is 0.

    Args:
        truth, result: bool masks [H, W].
    """
    import cv2  # here, so that --help does not wait for it

    radius = math.ceil(tolerance * np.linalg.norm(truth.shape))
    # Only boundary pixels are dilated and only boundary pixels are looked up: the box around both is enough.
    x, y, width, height = cv2.boundingRect((truth | result).view(np.uint8))
    box = slice(max(y - 1, 0), y + height + 1), slice(max(x - 1, 0), x + width + 1)
    truth, result = boundary(truth[box]), boundary(result[box])

    truth_pixels, result_pixels = np.count_nonzero(truth), np.count_nonzero(result)
    if truth_pixels == 0 or result_pixels == 0:
        return float(truth_pixels == result_pixels)
    disk = _disk(radius)
    precision = np.count_nonzero(result & cv2.dilate(truth, disk)) / result_pixels
    recall = np.count_nonzero(truth & cv2.dilate(result, disk)) / truth_pixels
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: np.ndarray) -> np.ndarray:
    """The one-pixel boundary of a bool mask [H, W] as uint8 0 or 1.

    A pixel is on it where its right, lower or lower right neighbour differs. In the last row only the right one
    counts, in the last column only the lower one: the image's border is no boundary.
    """
    edges = np.zeros(mask.shape, bool)
    edges[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edges[:-1] |= mask[:-1] != mask[1:]
    edges[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edges.view(np.uint8)


VOID = 255
"""The label of pixels that do not count, as in VOC. If a video's ground truth has no other label, 255 is an object."""

MEASURES = {'J': region_similarity, 'F': boundary_accuracy}


def score_frame(scores: Scores, name: str, truth: np.ndarray, result: np.ndarray, *, counts: bool = True) -> None:
    """Add the next frame of a video to its scores: J and F of each object that the ground truth has shown before.

    An object that this frame shows for the first time is added without a value, since its mask is given there.

    Args:
        name: of the frame.
        truth, result: uint8 [H, W], labels.
        counts: whether the frame is scored at all.
    """
    if counts:
        for label, measures in scores.items():
            for measure, function in MEASURES.items():
                measures[measure][name] = function(truth == label, result == label)
    scores |= {label: {measure: {} for measure in MEASURES} for label in labels_in(truth) if label not in scores}


def clear_void(truth: np.ndarray, result: np.ndarray) -> None:
    """Make void pixels background in both masks, uint8 [H, W], in place; the result keeps no label 255, either."""
    void = truth == VOID
    result[void | (result == VOID)] = 0
    truth[void] = 0


def labels_in(mask: np.ndarray) -> list[int]:
    """The labels of the objects in a uint8 mask [H, W], or in several [T, H, W], in ascending order."""
    return (np.flatnonzero(np.bincount(mask.ravel())[1:]) + 1).tolist()


def statistics(values: list[float]) -> dict[str, float]:
    """Mean, recall (the share above 0.5) and decay (first quarter minus last) of a sequence's frames in order.

    The quarters share their border frames, as in the official toolkit.
    """
    frames = np.asarray(values, np.float64)
    borders = np.round(np.linspace(1, len(frames), 5) + 1e-10).astype(int) - 1
    first, last = frames[: borders[1] + 1], frames[borders[3] :]
    return {
        'mean': float(frames.mean()),
        'recall': float((frames > 0.5).mean()),
        'decay': float(first.mean() - last.mean()),
    }


@lru_cache
def _disk(radius: int) -> np.ndarray:
    """uint8 [2r + 1, 2r + 1]: 1 within Euclidean distance r of the centre."""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return (x * x + y * y <= radius * radius).astype(np.uint8)
