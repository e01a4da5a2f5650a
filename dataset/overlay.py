"""Masks made visible on their images."""

import cv2
import numpy as np

from dataset.augment import IMAGENET_MEAN, IMAGENET_STD
from dataset.io import PALETTE


def draw_masks(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB and integer labels [H, W] -> uint8 [H, W, 3]: tinted objects with a white outline."""
    tinted = image.copy()
    inside = labels > 0
    # Half image, half colour, in integers; only where there is something to tint.
    tinted[inside] = (image[inside] >> 1) + (PALETTE[labels[inside]] >> 1)
    for label in np.unique(labels[inside]):
        outlines, _ = cv2.findContours((labels == label).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tinted, outlines, -1, (255, 255, 255))
    return tinted


def draw_sample(rgb: np.ndarray, target: np.ndarray) -> np.ndarray:
    """``draw_masks`` of a training frame: float32 [3, S, S] normalised and int64 [S, S] -> uint8 [S, S, 3]."""
    image = 255 * (rgb.transpose(1, 2, 0) * IMAGENET_STD + IMAGENET_MEAN)
    return draw_masks(image.round().clip(0, 255).astype(np.uint8), target)
