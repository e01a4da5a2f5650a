"""A report on how sure the network was of each object over a video, with the frames to look at first."""

import json
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from dataset.io import PALETTE
from inference.outputs import Output
from util.files import atomic_path
from util.metrics import labels_in

if TYPE_CHECKING:
    from torch import Tensor

    from inference.stream import Segmented

FIRST = 10
"""The largest number of frames that a report names as those to look at first."""

WIDTH, HEIGHT, MARGIN = 960, 240, 28
"""The size of the picture and of its margin, in pixels."""


def least_sure(confidence: Mapping[int, float], count: int) -> list[int]:
    """The frames to look at first: up to ``count`` of them, the least sure one first, and no neighbours.

    Any two of them are at least 1 / (2 ``count``) of the frames apart, so that they are not all of one bad moment.

    Args:
        confidence: frame -> how sure the network is of it.
        count: the largest number of frames to return.
    """
    apart = max(2, len(confidence) // (2 * count))
    chosen: list[int] = []
    for frame in sorted(confidence, key=confidence.__getitem__):
        if len(chosen) < count and all(abs(frame - other) >= apart for other in chosen):
            chosen.append(frame)
    return chosen


class Report(Output):
    """Writes ``folder/report.json`` and ``folder/report.png`` at the end of the video, also after Ctrl-C.

    The JSON has

    - ``first``: the frames to look at first (``frame``, ``name``, the least sure ``object`` and its ``confidence``),
      without the objects whose mask was given there;
    - ``vanished``: the frames in which an ``object`` of the frame before (backwards: the frame after) has disappeared;
      look at these, too, since the network may have lost the object and be sure of it;
    - ``frames``: for every frame its ``name`` and the ``confidence`` of each object, in [0, 1].

    Args:
        folder: where both files go.
        given: the labels whose masks were given, by the number of their frame.
        turn: the frames before this one are segmented backwards, the others forwards; ``None``: all backwards.
    """

    behind = 32

    def __init__(self, folder: Path, *, given: Mapping[int, Collection[int]] | None = None, turn: int | None = 0):
        self.given, self.turn = given or {}, turn
        self.json, self.picture = folder / 'report.json', folder / 'report.png'
        self.names: dict[int, str] = {}
        self.confidence: dict[int, dict[int, float]] = {}  # frame -> label -> value
        self.shown: dict[int, list[int]] = {}  # frame -> labels that have pixels

    def job(self, frame: 'Segmented') -> Callable[[], None]:
        from inference.confidence import expected_iou  # --help must not wait for torch

        return partial(self.add, frame.number, frame.name, frame.objects, expected_iou(frame.prob), frame.labels)

    def add(self, number: int, name: str, objects: list[int], values: 'Tensor', labels: 'Tensor') -> None:
        """Add a frame with the confidence of its objects, ``values [K]``, and its mask, ``labels [H, W]``."""
        self.names[number] = name
        self.confidence[number] = dict(zip(objects, values.tolist(), strict=True))
        self.shown[number] = [*labels_in(labels.cpu().numpy())]

    def state(self) -> dict[str, dict]:
        return {'names': self.names, 'confidence': self.confidence, 'shown': self.shown}

    def restore(self, state: dict[str, dict]) -> None:
        self.names, self.confidence, self.shown = (state[name] for name in ('names', 'confidence', 'shown'))

    def __exit__(self, *error) -> None:
        if error[0] is None and self.names:
            self.write()

    def write(self) -> None:
        """Write both files for the frames added so far."""
        found = {number: self._not_given(number) for number in self.confidence}
        worst = {number: min(values, key=values.__getitem__) for number, values in found.items() if values}
        sure = {number: self.confidence[number][label] for number, label in worst.items()}
        marked = least_sure(sure, FIRST)
        first = [
            {
                'frame': number,
                'name': self.names[number],
                'object': worst[number],
                'confidence': _rounded(sure[number]),
            }
            for number in marked
        ]
        vanished = [
            {'frame': number, 'name': self.names[number], 'object': label}
            for number in sorted(self.names)
            for label in self._vanished(number)
        ]
        frames = [
            {
                'frame': number,
                'name': self.names[number],
                'confidence': {str(label): _rounded(value) for label, value in self.confidence[number].items()},
            }
            for number in sorted(self.names)
        ]
        with atomic_path(self.json) as temporary:
            temporary.write_text(json.dumps({'first': first, 'vanished': vanished, 'frames': frames}, indent=1) + '\n')
        with atomic_path(self.picture) as temporary:
            draw(self.confidence, marked).save(temporary, format='PNG')

    def _not_given(self, number: int) -> dict[int, float]:
        given = self.given.get(number, ())
        return {label: value for label, value in self.confidence[number].items() if label not in given}

    def _vanished(self, number: int) -> list[int]:
        """The known objects that have pixels in the frame segmented just before this one, but not in this frame."""
        forwards = self.turn is not None and number >= self.turn
        before = self.shown.get(number - 1 if forwards else number + 1, ())
        return sorted(({*before} & {*self.confidence[number]}) - {*self.shown[number]})


def draw(confidence: Mapping[int, Mapping[int, float]], marked: list[int]) -> Image.Image:
    """Plot the confidence over time: a line for each object in the colour of its mask, a tick at each marked frame."""
    picture = Image.new('RGB', (WIDTH, HEIGHT), 'white')
    pen = ImageDraw.Draw(picture)
    last = max(1, *confidence)

    def place(frame: int, value: float) -> tuple[float, float]:
        return MARGIN + frame / last * (WIDTH - 2 * MARGIN), MARGIN + (1 - value) * (HEIGHT - 2 * MARGIN)

    for value in (0, 0.5, 1):
        pen.line([place(0, value), place(last, value)], fill='lightgray')
        pen.text((2, place(0, value)[1] - 6), f'{value:g}', fill='black')
    for frame in (0, last):
        pen.text((place(frame, 0)[0] - 6, HEIGHT - 14), str(frame), fill='black')
    for frame in marked:
        x, y = place(frame, 0)
        pen.line([(x, y - 6), (x, y + 6)], fill='black', width=2)
    for label in sorted({label for values in confidence.values() for label in values}):
        line = [place(frame, values[label]) for frame, values in sorted(confidence.items()) if label in values]
        colour = tuple(PALETTE[label].tolist())
        pen.line(line if len(line) > 1 else [*line, (line[0][0] + 1, line[0][1])], fill=colour, width=2)
        x, y = line[-1]
        pen.text((x + 4, y - 6), str(label), fill=colour)
    return picture


def _rounded(value: float) -> float:
    return round(value, 4)
