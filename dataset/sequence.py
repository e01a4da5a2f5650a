"""Videos to segment, and the ground truth that scores them: what the reader of every dataset returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np

from dataset.io import fit_mask, read_image, read_mask


@dataclass(frozen=True)
class Frame:
    """One frame of a video to segment. It holds paths; :class:`Video` reads the files."""

    name: str  # of its output file, without the suffix
    image: Path
    mask: Path | None = None  # its annotation, if it has one that may be used
    objects: tuple[int, ...] | None = None  # the labels that are taken from the annotation; None: all in it
    wanted: bool = True  # whether its segmentation is asked for


@dataclass(frozen=True)
class Video:
    """A video to segment. ``folder`` is where its masks go, below the output folder."""

    name: str
    folder: str
    frames: tuple[Frame, ...]
    binary: bool = False  # all non-zero labels together are one object

    def output_name(self, frame: Frame) -> str:
        """The name of the frame's output files: a path below the output folder, without a suffix."""
        return f'{self.folder}/{frame.name}'

    @property
    def wanted(self) -> list[str]:
        """The output names of the frames whose segmentation is asked for."""
        return [self.output_name(frame) for frame in self.frames if frame.wanted]

    def read_image(self, frame: Frame) -> np.ndarray:
        """``[H, W, 3]`` uint8 RGB. Raises :class:`dataset.io.DataError`."""
        return read_image(frame.image)

    def read_mask(self, frame: Frame, size: tuple[int, int]) -> np.ndarray | None:
        """``[H, W]`` uint8 labels at the image's size; ``None`` where the frame has no annotation."""
        if frame.mask is None:
            return None
        mask = fit_mask(read_mask(frame.mask), size, frame.mask)
        return (mask > 0).astype(np.uint8) if self.binary else mask


@dataclass(frozen=True)
class GroundTruth:
    """The ground-truth masks of a video, in frame order. Each file has the name of its frame, and a suffix."""

    name: str
    masks: tuple[Path, ...]
    skip_last: bool = False  # the last frame is not scored
    binary: bool = False  # all non-zero labels together are object 1
    categories: Mapping[int, str] = field(default_factory=dict)  # of objects, where they are known

    def read(self, path: Path) -> np.ndarray:
        """The labels in one of ``masks``, uint8 [H, W]. Raises :class:`dataset.io.DataError`."""
        return read_mask(path)

    def from_first_object(self) -> Self:
        """The same without the frames before the first object. A result need not have masks of those frames."""
        start = next((i for i, path in enumerate(self.masks) if self.read(path).any()), len(self.masks))
        return replace(self, masks=self.masks[start:])
