"""Clips made of the annotated frames of one video alone, to adapt a network to it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dataset.augment import (
    FRAMES,
    Warp,
    affine_about,
    random_flip,
    random_jitter,
    recolour,
    spline_map,
    translation,
)
from dataset.io import DataError
from dataset.sampling import AddressedDataset
from dataset.synthetic import MAX_OBJECTS, Layer, video_sample

WORKING_SIZE = 480
"""Shorter side in pixels to which larger frames are reduced. Few clips show them larger than this."""

HOLE_REDUCTION = 4
"""The background behind an object is made at this fraction of the frame's size: it is smooth, so this is enough."""


@dataclass(frozen=True)
class Annotated:
    """A frame with its labels, uint8 [H, W, 3] and [H, W], and the frame without its objects."""

    image: np.ndarray
    labels: np.ndarray
    ground: np.ndarray


class AnnotatedDataset(AddressedDataset):
    """Clips of the objects of annotated frames: each is cut out, and moves, bends, turns and grows over its frame.

    The hole that an object leaves is filled from around it. A camera moves over everything. Some clips also show a
    copy of an object, which counts as background, or a piece of the background that passes in front. At most
    two objects of a clip are to be segmented; the others distract. A sample is what ``video_sample`` makes.

    Args:
        frames: frames of one video with their labels: uint8 [H, W, 3] and uint8 [H, W], 0 for the background. Those
            without an object are left out.
        size: side of a clip's frames.
        distractors, occluders: the share of clips that have one.

    Raises:
        DataError: no frame shows an object, or an image and its labels do not fit together.
    """

    def __init__(
        self,
        frames: Iterable[tuple[np.ndarray, np.ndarray]],
        *,
        size: int = 320,
        distractors: float = 0.3,
        occluders: float = 0.3,
    ) -> None:
        super().__init__()
        self.size, self.distractors, self.occluders = size, distractors, occluders
        # A tiny object may be gone once its frame is reduced.
        self.frames = [
            each for image, labels in frames if labels.any() and (each := _annotated(image, labels)).labels.any()
        ]
        if not self.frames:
            raise DataError(
                'expected at least one annotated frame that shows an object, also when its shorter side is reduced to '
                f'{WORKING_SIZE} pixels; found none'
            )

    def __len__(self) -> int:
        return len(self.frames)

    def sample(self, index: int, rng: np.random.Generator, *, max_skip: int = 0) -> dict[str, Any]:
        """A clip of the frame with this index; ``max_skip`` is not used."""
        source = self.frames[index]
        present = [int(label) for label in np.unique(source.labels) if label]
        rng.shuffle(present)
        cameras = self._cameras(rng, source.labels == present[0])
        images = [Warp(camera, self.size).image(source.ground) for camera in cameras]
        labels: np.ndarray = np.zeros((FRAMES, self.size, self.size), np.uint8)
        shown = [(label, True) for label in present]
        if rng.random() < self.distractors:
            shown.append((present[rng.integers(len(present))], False))
        for place in rng.permutation(len(shown)):
            label, is_itself = shown[place]
            layer = self._layer(rng, source, label, cameras, is_itself=is_itself)
            layer.paste(images)
            labels[layer.coverage > 127] = label if is_itself else 0
        if rng.random() < self.occluders:
            layer = self._occluder(rng, source, cameras)
            layer.paste(images)
            labels[layer.coverage > 127] = 0
        common = random_jitter(rng, brightness=0.1, contrast=0.05, saturation=0.05)
        own = [random_jitter(rng, brightness=0.03, contrast=0.03, saturation=0.03) for _ in images]
        images = [recolour(image, common + each) for image, each in zip(images, own, strict=True)]
        visible = [label for label in present if (labels[0] == label).any()]  # the first mask is the one that is given
        return video_sample(images, labels, visible[:MAX_OBJECTS], name='')

    def _cameras(self, rng: np.random.Generator, inside: np.ndarray) -> list[np.ndarray]:
        """The matrices from the annotated frame to each frame of a clip, which keep the object in sight."""
        (H, W), S = inside.shape, self.size
        x, y, width, height = cv2.boundingRect(inside.astype(np.uint8))
        scale = S / min(H, W) * np.exp(rng.uniform(np.log(0.9), np.log(1.6)))
        scale = min(scale, max(0.9 * S / max(width, height), 0.9 * S / max(H, W)))
        flip = random_flip(rng, W)
        middle = np.array([x + width / 2, y + height / 2]) + rng.normal(0, 0.15, 2) * S / scale
        left, top, _ = flip @ [*middle, 1]
        velocity, turn, growth = rng.normal(0, 0.05, 2) * S, rng.normal(0, 3), rng.normal(0, 0.04)

        def at(time: float) -> np.ndarray:
            pose = affine_about((0, 0), angle=time * turn, scale=scale * np.exp(time * growth))
            return translation(*(S / 2 + time * velocity)) @ pose @ translation(-left, -top) @ flip

        return [at(time) for time in np.linspace(-1, 1, FRAMES)]

    def _layer(
        self, rng: np.random.Generator, source: Annotated, label: int, cameras: list[np.ndarray], *, is_itself: bool
    ) -> Layer:
        """An object that moves over the frame. It is near its own place; a copy is anywhere, and may be mirrored."""
        inside = source.labels == label
        x, y, width, height = cv2.boundingRect(inside.astype(np.uint8))
        middle = np.array([x + width / 2, y + height / 2])
        # The side of the clip, in pixels of the frame.
        reach = self.size / np.sqrt(abs(np.linalg.det(cameras[0][:2, :2])))
        start = middle + rng.normal(0, 0.05 if is_itself else 0.35, 2) * reach
        velocity, turn, growth = rng.normal(0, 0.15, 2) * reach, rng.normal(0, 10), rng.normal(0, 0.12)
        shape = affine_about((0, 0), angle=rng.normal(0, 5), scale=np.exp(rng.normal(0, 0.1)), shear=rng.normal(0, 4))
        if not is_itself:
            shape = shape @ random_flip(rng, 0)
        points, bend = rng.random((12, 2)), rng.normal(0, 0.02, (12, 2))
        colour = () if is_itself else random_jitter(rng, brightness=0.1, contrast=0.05, saturation=0.05)
        image, coverage = recolour(source.image, colour), 255 * inside.astype(np.uint8)
        images, coverages = [], []
        for time, camera in zip(np.linspace(-1, 1, FRAMES), cameras, strict=True):
            pose = affine_about((0, 0), angle=time * turn, scale=np.exp(time * growth)) @ shape
            matrix = camera @ translation(*(start + time * velocity)) @ pose @ translation(*-middle)
            warp = Warp(matrix, self.size, spline_map(points, (time + 1) / 2 * bend, self.size))
            images.append(warp.image(image))
            coverages.append(cv2.GaussianBlur(warp.coverage(coverage), (0, 0), 0.7))
        return Layer(None, np.stack(coverages), images)

    def _occluder(self, rng: np.random.Generator, source: Annotated, cameras: list[np.ndarray]) -> Layer:
        """A round piece of the background that passes in front of everything."""
        S = self.size
        middle, velocity, shift = (
            rng.uniform(0.2, 0.8, 2) * S,
            rng.normal(0, 0.2, 2) * S,
            rng.uniform(-0.3, 0.3, 2) * S,
        )
        radius = rng.uniform(0.05, 0.15) * S
        images, coverages = [], []
        for time, camera in zip(np.linspace(-1, 1, FRAMES), cameras, strict=True):
            coverage = np.zeros((S, S), np.uint8)
            x, y = (middle + time * velocity).round().astype(int).tolist()
            cv2.ellipse(coverage, (x, y), (int(radius), int(1.8 * radius)), 30, 0, 360, 255, -1)
            images.append(Warp(translation(*shift) @ camera, S).image(source.ground))
            coverages.append(cv2.GaussianBlur(coverage, (0, 0), 1))
        return Layer(None, np.stack(coverages), images)


def _annotated(image: np.ndarray, labels: np.ndarray) -> Annotated:
    if image.shape != (*labels.shape, 3) or not image.dtype == labels.dtype == np.uint8:
        raise DataError(
            'annotated frames: expected images uint8 [H, W, 3] with labels uint8 [H, W], found '
            f'{image.dtype} {list(image.shape)} with {labels.dtype} {list(labels.shape)}'
        )
    ratio = WORKING_SIZE / min(labels.shape)
    if ratio < 1:
        image = cv2.resize(image, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA)
        labels = cv2.resize(labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return Annotated(image, labels, _without_objects(image, labels > 0))


def _without_objects(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The frame with the hole, bool [H, W], filled smoothly from around it, and a little noise in it."""
    H, W = hole.shape
    shape = max(W // HOLE_REDUCTION, 1), max(H // HOLE_REDUCTION, 1)
    small = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
    reduced = cv2.resize(hole.astype(np.float32), shape, interpolation=cv2.INTER_AREA)
    missing = cv2.dilate((reduced > 0).astype(np.uint8), np.ones((7, 7), np.uint8))
    filled = cv2.resize(cv2.inpaint(small, missing, 3, cv2.INPAINT_TELEA), (W, H), interpolation=cv2.INTER_LINEAR)
    weight = cv2.GaussianBlur(cv2.dilate(hole.astype(np.float32), np.ones((9, 9))), (0, 0), 3)[..., None]
    noise = np.random.default_rng(0).normal(0, 4, image.shape)
    return (image + weight * (filled + noise - image)).clip(0, 255).astype(np.uint8)
