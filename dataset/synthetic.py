"""Training clips that are composed of image and mask pairs, instead of BL30K and its terabyte.

Objects are cut out of their images and move over another frame, each along its own smooth path; they bend, touch and
occlude one another. The frame is a still with a moving camera (``SyntheticDataset``) or a real video (``VideoDataset``
with ``cut_outs``). Some of the objects may come from real videos, and turn and deform as they do there.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from dataset.augment import (
    FRAMES,
    Warp,
    affine_about,
    normalise,
    random_flip,
    random_jitter,
    recolour,
    spline_map,
    translation,
)
from dataset.sampling import AddressedDataset, choose_objects
from dataset.static import Pair, draw_pair, read_pair

if TYPE_CHECKING:
    from dataset.video import TrainingVideo  # that module imports this one

MAX_OBJECTS = 2
MIN_SIDE = 8
"""The least width and height of a cut-out in its own image, in pixels; a smaller one, enlarged, would be noise."""


@dataclass(frozen=True)
class Difficulty:
    """How cut-outs move, and how much they look alike.

    ``speed``, ``turn`` and ``growth`` are standard deviations of normal distributions, from which the change during
    half of a clip is drawn. The last four values are probabilities, for each cut-out.
    """

    speed: float = 0.15
    """Along x and y, as a fraction of the frame's side."""
    turn: float = 12.0
    """Degrees."""
    growth: float = 0.12
    """Of the logarithm of the scale."""
    look_alike: float = 0.0
    """That it shows an object that the clip has already, or another one from the same folder. An object of a video is
    shown as it looks at another time."""
    crossing: float = 0.0
    """That it covers another object in the middle of the clip and is beside it at both ends."""
    blur: float = 0.0
    """That it is blurred along its path, as if the shutter were open for a part of the time between two frames."""
    moving: float = 0.0
    """That it shows an object of a training video, in T of its frames; only where there are videos."""


DIFFICULTIES = {
    'plain': Difficulty(),
    'hard': Difficulty(speed=0.22, turn=22.0, growth=0.25, look_alike=0.5, crossing=0.25, blur=0.25, moving=0.5),
}


@dataclass(frozen=True)
class Thing:
    """An object of a clip that later cut-outs may look like, or pass in front of."""

    source: 'Pair | TrainingVideo | None'
    """Where it was cut out, or the video whose object it is; None: nothing is drawn to look like it."""
    coverage: np.ndarray
    """uint8 [T, S, S], 255 inside."""


@dataclass(frozen=True)
class Layer(Thing):
    """One cut-out in every frame of a clip."""

    images: list[np.ndarray]
    """T times uint8 [S, S, 3]."""

    def paste(self, frames: list[np.ndarray]) -> None:
        """Blend it into the frames, uint8 [S, S, 3]; the entries of the list are replaced."""
        for t, image in enumerate(self.images):
            inside = cv2.merge([self.coverage[t]] * 3).astype(np.float32) / 255
            frames[t] = (frames[t] + inside * (image.astype(np.float32) - frames[t])).round().astype(np.uint8)

    def paste_label(self, labels: np.ndarray) -> None:
        """Write the cut-out into ``labels``, uint8 [T, S, S], with the lowest label that is not in use; in place."""
        free = np.flatnonzero(np.bincount(labels.ravel(), minlength=256) == 0)
        if free.size:
            labels[self.coverage > 127] = free[free > 0][0]


class CutOuts:
    """Draws moving objects from image and mask pairs, and from videos if there are any."""

    def __init__(
        self,
        pairs: list[Pair],
        *,
        difficulty: Difficulty = DIFFICULTIES['plain'],
        videos: Sequence['TrainingVideo'] = (),
    ) -> None:
        self.pairs, self.difficulty, self.videos = pairs, difficulty, videos
        self._folders: dict[str, list[Pair]] = {}
        for pair in pairs:
            self._folders.setdefault(os.path.dirname(pair.image), []).append(pair)

    def draw(
        self,
        rng: np.random.Generator,
        size: int,
        *,
        limit: int = 2,
        frames: int = FRAMES,
        max_skip: int = 1,
        scene: Sequence[Thing] = (),
    ) -> list[Layer]:
        """Up to ``limit`` objects, in the order in which they are pasted: the last one lies in front.

        ``scene`` are the objects that the clip of ``frames`` frames shows already. A mask that is narrower or lower
        than ``MIN_SIDE`` gives no object. ``max_skip`` is that of the frames of a video, see ``sample_frames``.

        Raises:
            DataError: a file cannot be used.
        """
        layers: list[Layer] = []
        for _ in range(rng.integers(1, limit + 1)):
            layer = self._layer(rng, size, frames, max_skip, [*scene, *layers])
            if layer is not None:
                layers.append(layer)
        return layers

    def _layer(
        self, rng: np.random.Generator, size: int, frames: int, max_skip: int, scene: list[Thing]
    ) -> Layer | None:
        source = self._source(rng, [thing.source for thing in scene if thing.source is not None])
        if isinstance(source, Pair):
            film = [read_pair(source)]
        else:
            film = source.film(rng, frames=frames, max_skip=max_skip)
        anywhere = np.maximum.reduce([coverage for _, coverage in film])
        left, top, width, height = cv2.boundingRect((anywhere > 127).astype(np.uint8))
        if min(width, height) < MIN_SIDE:
            return None
        box = np.s_[top : top + height, left : left + width]
        colour = random_jitter(rng, brightness=0.2, contrast=0.1, saturation=0.1, hue=0.05)
        cut_outs = [(recolour(image[box], colour), coverage[box]) for image, coverage in film]
        if isinstance(source, Pair):
            cut_outs *= frames
        times = np.linspace(-1, 1, frames)
        path = self._path(rng, height, width, size, scene)
        if self.difficulty.blur and rng.random() < self.difficulty.blur:
            open_for = rng.uniform(0.1, 0.5) * (times[1] - times[0])
            shown = [_blurred(*each, path, time, open_for) for each, time in zip(cut_outs, times, strict=True)]
        else:
            warps = [path(time) for time in times]
            shown = [(w.image(image), w.coverage(inside)) for w, (image, inside) in zip(warps, cut_outs, strict=True)]
        images, coverages = zip(*shown, strict=True)
        return Layer(source, np.stack(coverages), list(images))

    def _source(self, rng: np.random.Generator, there: 'list[Pair | TrainingVideo]') -> 'Pair | TrainingVideo':
        """The pair or the video of a new cut-out, in a clip that shows objects of the sources ``there``."""
        if not self.videos:
            there = [source for source in there if isinstance(source, Pair)]
        if there and self.difficulty.look_alike and rng.random() < self.difficulty.look_alike:
            like = there[rng.integers(len(there))]
            if not isinstance(like, Pair):
                return like
            folder = self._folders.get(os.path.dirname(like.image), [like])
            return like if rng.random() < 0.5 else folder[rng.integers(len(folder))]
        if self.videos and self.difficulty.moving and rng.random() < self.difficulty.moving:
            return self.videos[int(rng.integers(len(self.videos)))]
        return self.pairs[rng.integers(len(self.pairs))]

    def _path(
        self, rng: np.random.Generator, height: int, width: int, size: int, scene: list[Thing]
    ) -> Callable[[float], Warp]:
        """Position, angle, scale and bending as smooth functions of time, -1 to 1 over the clip."""
        hard = self.difficulty
        scale = size * np.exp(rng.uniform(np.log(0.2), np.log(0.75))) / max(height, width)
        middle = rng.uniform(0.15, 0.85, 2) * size
        velocity, acceleration = rng.normal(0, hard.speed * size, 2), rng.normal(0, 0.05 * size, 2)
        angle, turn, growth = rng.uniform(-20, 20), rng.normal(0, hard.turn), rng.normal(0, hard.growth)
        flip = random_flip(rng, width)
        bends = rng.random() < 0.5
        points, bend = rng.random((12, 2)), rng.normal(0, 0.02, (12, 2))
        if scene and hard.crossing and rng.random() < hard.crossing:
            behind = scene[rng.integers(len(scene))].coverage
            left, top, w, h = cv2.boundingRect((behind[len(behind) // 2] > 127).astype(np.uint8))
            if w and h:
                middle = np.array([left + w / 2, top + h / 2])
                direction = rng.normal(0, 1, 2)
                apart = (np.hypot(w, h) + scale * np.hypot(width, height)) / 2
                velocity = direction / np.linalg.norm(direction) * apart * rng.uniform(0.7, 1.2)

        def at(time: float) -> Warp:
            x, y = middle + time * velocity + time**2 * acceleration
            pose = affine_about((0, 0), angle=angle + time * turn, scale=scale * np.exp(time * growth))
            matrix = translation(x, y) @ pose @ translation(-width / 2, -height / 2) @ flip
            return Warp(matrix, size, spline_map(points, time * bend, size) if bends else None)

        return at


def _blurred(
    image: np.ndarray,
    coverage: np.ndarray,
    path: Callable[[float], Warp],
    time: float,
    open_for: float,
    steps: int = 5,
) -> tuple[np.ndarray, np.ndarray]:
    """A cut-out and its coverage with motion blur: uint8 [S, S, 3] and [S, S].

    The shutter is open for ``open_for`` around ``time``. The colour of a pixel is the mean over the moments at which
    the cut-out covers it, and the coverage the mean over all moments, so that the border fades.
    """
    colour: np.ndarray = np.zeros((), np.float32)
    covered = colour
    for moment in time + np.linspace(-0.5, 0.5, steps) * open_for:
        warp = path(moment)
        inside = warp.coverage(coverage).astype(np.float32)
        colour = colour + inside[..., None] * warp.image(image)
        covered = covered + inside
    colour = colour / np.maximum(covered, 1)[..., None]
    return colour.round().clip(0, 255).astype(np.uint8), (covered / steps).round().astype(np.uint8)


class SyntheticDataset(AddressedDataset):
    """Clips of a still and its object under a moving camera, with up to three cut-outs over it.

    A sample is what ``video_sample`` makes; up to two of the objects are to be segmented, the others distract.
    """

    def __init__(
        self,
        pairs: list[Pair],
        *,
        size: int = 384,
        frames: int = FRAMES,
        difficulty: Difficulty = DIFFICULTIES['plain'],
        videos: Sequence['TrainingVideo'] = (),
    ) -> None:
        super().__init__()
        self.pairs, self.size, self.frames = pairs, size, frames
        self.cut_outs = CutOuts(pairs, difficulty=difficulty, videos=videos)

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, index: int, rng: np.random.Generator, *, max_skip: int = 0) -> dict[str, Any]:
        """A clip around the pair of this index; ``max_skip`` is that of cut-outs from videos."""
        pair = self.pairs[index]
        augmentation, image, coverage = draw_pair(pair, rng, size=self.size, frames=self.frames)
        views = zip(augmentation.warps, augmentation.frame_colours, strict=True)
        frames = [warp.image(recolour(image, augmentation.colour + own)) for warp, own in views]
        labels = np.stack([warp.mask(coverage) for warp in augmentation.warps]).astype(np.uint8)
        scene = [Thing(pair, 255 * labels)]
        for layer in self.cut_outs.draw(rng, self.size, limit=3, frames=self.frames, max_skip=max_skip, scene=scene):
            layer.paste(frames)
            layer.paste_label(labels)
        objects = choose_objects(labels, rng, limit=MAX_OBJECTS, discard_tiny=True)
        return video_sample(frames, labels, objects, name=pair.image)


class Mixture(AddressedDataset):
    """The samples of ``main``; each is replaced by a random one of ``other`` with probability ``fraction``."""

    def __init__(self, main: AddressedDataset, other: AddressedDataset, *, fraction: float = 0.5) -> None:
        super().__init__()
        self.main, self.other, self.fraction = main, other, fraction

    def __len__(self) -> int:
        return len(self.main)

    def sample(self, index: int, rng: np.random.Generator, *, max_skip: int) -> dict[str, Any]:
        if rng.random() < self.fraction:
            return self.other.sample(int(rng.integers(len(self.other))), rng, max_skip=max_skip)
        return self.main.sample(index, rng, max_skip=max_skip)


def video_sample(frames: list[np.ndarray], labels: np.ndarray, objects: list[int], *, name: str) -> dict[str, Any]:
    """A training sample of T frames uint8 [S, S, 3] and labels uint8 [T, S, S], of which ``objects`` are chosen.

    With K = 2:

    - rgb: float32 [T, 3, S, S], normalised for ImageNet
    - masks: uint8 [T, K, S, S], 0 or 1; all 0 for an object that is not there
    - target: int64 [T, S, S], 0 for background, 1 and 2 for the objects
    - selector: float32 [K], 1 where there is such an object; [1, 0] even if there is none at all
    - name: as given
    """
    numbers = np.zeros(256, np.uint8)
    numbers[objects] = range(1, len(objects) + 1)
    target = cv2.LUT(labels.reshape(-1, labels.shape[-1]), numbers).reshape(labels.shape)
    masks = target[:, None] == np.arange(1, MAX_OBJECTS + 1, dtype=np.uint8)[:, None, None]
    return {
        'rgb': torch.from_numpy(normalise(frames)),
        'masks': torch.from_numpy(masks.view(np.uint8)),
        'target': torch.from_numpy(target.astype(np.int64)),
        'selector': torch.tensor([1.0, float(len(objects) > 1)]),
        'name': name,
    }
