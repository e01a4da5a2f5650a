"""Clips composed of image and mask pairs, in the spirit of BL30K: for everyone who does not have its terabyte.

Objects are cut out of their images and move over another frame, each along its own smooth path; they bend, touch and
occlude one another. The frame is a still with a moving camera (``SyntheticDataset``) or a real video (``VideoDataset``
with ``cut_outs``).
"""

from dataclasses import dataclass
from typing import Any

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

MAX_OBJECTS = 2
MIN_SIDE = 8
"""Pixels of a cut-out in its own image; less is noise once it is enlarged."""


@dataclass(frozen=True)
class Layer:
    """One cut-out in every frame of a clip."""

    images: list[np.ndarray]
    """T times uint8 [S, S, 3]."""
    coverage: np.ndarray
    """uint8 [T, S, S], 255 inside."""

    def paste(self, frames: list[np.ndarray]) -> None:
        """Blend into the frames, uint8 [S, S, 3], in place of the list's entries."""
        for t, image in enumerate(self.images):
            inside = cv2.merge([self.coverage[t]] * 3).astype(np.float32) / 255
            frames[t] = (frames[t] + inside * (image.astype(np.float32) - frames[t])).round().astype(np.uint8)

    def paste_label(self, labels: np.ndarray) -> None:
        """Give the cut-out the lowest label that uint8 [T, S, S] does not have; in place."""
        free = np.flatnonzero(np.bincount(labels.ravel(), minlength=256) == 0)
        if free.size:
            labels[self.coverage > 127] = free[free > 0][0]


class CutOuts:
    """Draws moving objects from image and mask pairs."""

    def __init__(self, pairs: list[Pair]) -> None:
        self.pairs = pairs

    def draw(self, rng: np.random.Generator, size: int, *, limit: int = 2) -> list[Layer]:
        """Up to ``limit`` objects, in the order in which they are pasted: the last one lies in front.

        A mask that shows nothing, or next to nothing, gives none.

        Raises:
            DataError: a file cannot be used.
        """
        layers = [self._layer(rng, size) for _ in range(rng.integers(1, limit + 1))]
        return [layer for layer in layers if layer is not None]

    def _layer(self, rng: np.random.Generator, size: int) -> Layer | None:
        pair = self.pairs[rng.integers(len(self.pairs))]
        image, coverage = read_pair(pair)
        left, top, width, height = cv2.boundingRect((coverage > 127).astype(np.uint8))
        if min(width, height) < MIN_SIDE:
            return None
        box = np.s_[top : top + height, left : left + width]
        image = recolour(image[box], random_jitter(rng, brightness=0.2, contrast=0.1, saturation=0.1, hue=0.05))
        warps = self._path(rng, height, width, size)
        return Layer([warp.image(image) for warp in warps], np.stack([warp.coverage(coverage[box]) for warp in warps]))

    def _path(self, rng: np.random.Generator, height: int, width: int, size: int) -> list[Warp]:
        """Position, angle, scale and bending as smooth functions of time, -1 to 1 over the clip."""
        scale = size * np.exp(rng.uniform(np.log(0.2), np.log(0.75))) / max(height, width)
        middle = rng.uniform(0.15, 0.85, 2) * size
        velocity, acceleration = rng.normal(0, 0.15 * size, 2), rng.normal(0, 0.05 * size, 2)
        angle, turn, growth = rng.uniform(-20, 20), rng.normal(0, 12), rng.normal(0, 0.12)
        flip = random_flip(rng, width)
        bends = rng.random() < 0.5
        points, bend = rng.random((12, 2)), rng.normal(0, 0.02, (12, 2))

        warps = []
        for time in np.linspace(-1, 1, FRAMES):
            x, y = middle + time * velocity + time**2 * acceleration
            pose = affine_about((0, 0), angle=angle + time * turn, scale=scale * np.exp(time * growth))
            matrix = translation(x, y) @ pose @ translation(-width / 2, -height / 2) @ flip
            warps.append(Warp(matrix, size, spline_map(points, time * bend, size) if bends else None))
        return warps


class SyntheticDataset(AddressedDataset):
    """Clips of three frames: a still and its object under a moving camera, and up to three cut-outs over it.

    A sample is what ``video_sample`` makes; up to two of the objects are to be segmented, the others distract.
    """

    def __init__(self, pairs: list[Pair], *, size: int = 384) -> None:
        super().__init__()
        self.pairs, self.size = pairs, size
        self.cut_outs = CutOuts(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, index: int, rng: np.random.Generator, *, max_skip: int = 0) -> dict[str, Any]:
        """``max_skip`` has no meaning here."""
        pair = self.pairs[index]
        augmentation, image, coverage = draw_pair(pair, rng, size=self.size)
        views = zip(augmentation.warps, augmentation.frame_colours, strict=True)
        frames = [warp.image(recolour(image, augmentation.colour + own)) for warp, own in views]
        labels = np.stack([warp.mask(coverage) for warp in augmentation.warps]).astype(np.uint8)
        for layer in self.cut_outs.draw(rng, self.size, limit=3):
            layer.paste(frames)
            layer.paste_label(labels)
        objects = choose_objects(labels, rng, limit=MAX_OBJECTS, discard_tiny=True)
        return video_sample(frames, labels, objects, name=pair.image)


class Mixture(AddressedDataset):
    """Samples of ``main``, of which ``fraction`` is replaced by random ones of ``other``."""

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
