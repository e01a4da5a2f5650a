"""Converts labels to what the page shows and back: the painted layer, colours, and the bar of frames."""

import itertools
from collections.abc import Iterable

import cv2
import numpy as np

from dataset.io import PALETTE
from inference.session import Session

# An anti-aliased brush mixes colours. No mixture of two of these corners of the RGB cube is near a third one.
COLOURS = ('red', 'green', 'olive', 'blue', 'purple', 'teal', 'grey')
TOLERANCE = 8  # largest difference from a colour in each channel, of 255
SHOWN_ALPHA = 128  # opacity of the present mask, of 255; new strokes are opaque
COLUMNS = 600  # largest number of columns of the bar
UNSURE = 0.75  # a frame whose least sure object has a lower confidence than this is shown as unsure

BAR_LEGEND = {'painted': '#2563eb', 'unsure': '#f59e0b', 'propagated': '#16a34a', 'none': '#9ca3af55'}


def title_of(label: int, name: str) -> str:
    """The title of an object on the page: its label, and its name or its colour."""
    return f'{label} {name or (COLOURS[label - 1] if label <= len(COLOURS) else "object")}'


def layer_of(labels: np.ndarray) -> np.ndarray:
    """``[H, W]`` labels -> RGBA layer, uint8 ``[H, W, 4]``: objects half transparent in their colours."""
    return np.dstack([PALETTE[labels], SHOWN_ALPHA * (labels > 0).astype(np.uint8)])


def labels_of(layer: np.ndarray, shown: np.ndarray, brushes: Iterable[int]) -> np.ndarray:
    """Convert a painted layer, uint8 ``[H, W, 4]``, to labels, uint8 ``[H, W]``.

    A pixel with less than half of the opacity ``SHOWN_ALPHA`` is background. A pixel in the colour of a brush belongs
    to its object. A pixel that still has the colour of its label in ``shown`` keeps this label. Other colours are
    mixtures at an outline that a brush or the eraser smoothed; they get the label of the nearest pixel that is no
    mixture. So every label in the result was shown or painted.

    Args:
        layer: the painted layer.
        shown: uint8 ``[H, W]``, the labels from which :func:`layer_of` made the layer before it was painted on.
        brushes: the labels of the brushes that were used.
    """
    empty = layer[..., 3] < SHOWN_ALPHA // 2
    labels = np.where(_is_colour(layer, PALETTE[shown]) & ~empty, shown, 0)
    for label in brushes:
        labels[_is_colour(layer, PALETTE[label]) & ~empty] = label
    mixed = ~empty & (labels == 0)
    if mixed.all():
        return np.zeros_like(labels)
    if mixed.any():
        nearest = cv2.distanceTransformWithLabels(
            mixed.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )[1]
        label_of = np.zeros(nearest.max() + 1, np.uint8)
        label_of[nearest[~mixed]] = labels[~mixed]
        labels = label_of[nearest]
    return labels


def _is_colour(layer: np.ndarray, colours: np.ndarray) -> np.ndarray:
    return (np.abs(layer[..., :3].astype(np.int16) - colours) <= TOLERANCE).all(axis=-1)


def bar(session: Session, frame: int) -> str:
    """The bar as HTML: all frames of a clip from left to right, coloured by the state of their masks.

    ``frame`` is marked.
    """
    masked, sure = session.masked(), session.sureness()
    known = {t: 'unsure' if sure.get(t, 1) < UNSURE else 'propagated' for t in masked} | dict.fromkeys(
        session.painted, 'painted'
    )
    kinds = [known.get(t, 'none') for t in range(len(session))]
    columns = min(len(kinds), COLUMNS)
    edges = [column * len(kinds) // columns for column in range(columns + 1)]
    shown = [min(kinds[a:b], key=list(BAR_LEGEND).index) for a, b in itertools.pairwise(edges)]
    runs: list[tuple[str, int]] = []
    for kind in shown:
        count = runs.pop()[1] if runs and runs[-1][0] == kind else 0
        runs.append((kind, count + 1))
    spans = ''.join(f'<span class="{kind}" style="flex:{count}"></span>' for kind, count in runs)
    legend = ' '.join(f'<span class="{kind}"></span>{kind if kind != "none" else "no mask"}' for kind in BAR_LEGEND)
    place = 100 * (frame + 0.5) / len(kinds)
    return f'<div class="frames">{spans}<i style="left:{place:.2f}%"></i></div><div class="legend">{legend}</div>'
