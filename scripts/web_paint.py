"""Between labels and what the page shows of them: the layer that is painted on, colours, the bar of frames."""

import itertools
from collections.abc import Iterable

import cv2
import numpy as np

from dataset.io import PALETTE
from inference.session import Session

# Corners of the RGB cube: no mixture of two of these colours, as an anti-aliased brush leaves, is near a third.
COLOURS = ('red', 'green', 'olive', 'blue', 'purple', 'teal', 'grey')
TOLERANCE = 8  # of a colour, in each channel
SHOWN_ALPHA = 128  # masks that are there already let the frame shine through; new strokes are opaque
COLUMNS = 600  # of the bar, at most
UNSURE = 0.75  # confidence in the least sure object, below which the bar calls a frame unsure

BAR_LEGEND = {'painted': '#2563eb', 'unsure': '#f59e0b', 'propagated': '#16a34a', 'none': '#9ca3af55'}


def title_of(label: int, name: str) -> str:
    """What the page calls an object."""
    return f'{label} {name or (COLOURS[label - 1] if label <= len(COLOURS) else "object")}'


def layer_of(labels: np.ndarray) -> np.ndarray:
    """``[H, W]`` labels -> uint8 ``[H, W, 4]``: objects in their colours, half transparent; nothing elsewhere."""
    return np.dstack([PALETTE[labels], SHOWN_ALPHA * (labels > 0).astype(np.uint8)])


def labels_of(layer: np.ndarray, shown: np.ndarray, brushes: Iterable[int]) -> np.ndarray:
    """What was painted, uint8 ``[H, W, 4]`` -> uint8 ``[H, W]`` labels.

    Less than half of ``SHOWN_ALPHA`` is background, a brush's colour is its object, and where a pixel has the colour
    that it had in the layer of ``shown``, it is what it was. Other colours are mixtures, where a brush or the eraser
    smoothed an outline: they become what the nearest pixel that is none is. So there are no objects but those that
    were shown or painted.

    Args:
        shown: uint8 ``[H, W]``, the labels from which :func:`layer_of` made the layer that was painted on.
        brushes: the labels that were painted with.
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
    """HTML: from left to right all frames of a clip, in the colours of what their masks are; ``frame`` is marked."""
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
