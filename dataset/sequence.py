"""What every benchmark's reader yields: videos as lists of frames, read one frame at a time."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.io import fit_mask, read_image, read_mask


@dataclass(frozen=True)
class Frame:
    """One frame of a video to segment; nothing is read before :class:`Video` is asked."""

    name: str  # of its output file, without the suffix
    image: Path
    mask: Path | None = None  # its annotation, if it has one that may be used
    objects: tuple[int, ...] | None = None  # the labels that the annotation speaks of; None: all in it
    wanted: bool = True  # whether its segmentation is asked for


@dataclass(frozen=True)
class Video:
    """A video to segment. ``folder`` is where its masks go, below the output folder."""

    name: str
    folder: str
    frames: tuple[Frame, ...]
    binary: bool = False  # every non-zero label is the one object

    def read_image(self, frame: Frame) -> np.ndarray:
        """``[H, W, 3]`` uint8 RGB. Raises :class:`dataset.io.DataError`."""
        return read_image(frame.image)

    def read_mask(self, frame: Frame, size: tuple[int, int]) -> np.ndarray | None:
        """``[H, W]`` uint8 labels at the image's size; ``None`` where the frame has no annotation."""
        if frame.mask is None:
            return None
        mask = fit_mask(read_mask(frame.mask), size, frame.mask)
        return (mask > 0).astype(np.uint8) if self.binary else mask
