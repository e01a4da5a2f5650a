"""Training samples and predictions made visible."""
import cv2
import numpy as np

from dataset.augment import IMAGENET_MEAN, IMAGENET_STD
from dataset.io import PALETTE


def overlay(rgb: np.ndarray, target: np.ndarray) -> np.ndarray:
    """float32 [3, S, S] normalised and int64 [S, S] -> uint8 [S, S, 3]: tinted objects with a white outline."""
    image = 255 * (rgb.transpose(1, 2, 0) * IMAGENET_STD + IMAGENET_MEAN)
    tinted = np.where(target[..., None] > 0, 0.5 * image + 0.5 * PALETTE[target], image)
    sheet = np.ascontiguousarray(tinted.round().clip(0, 255).astype(np.uint8))
    for label in np.unique(target[target > 0]):
        outlines, _ = cv2.findContours((target == label).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(sheet, outlines, -1, (255, 255, 255))
    return sheet
