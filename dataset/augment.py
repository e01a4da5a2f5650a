"""Augmentation: all geometry of a frame as one resampling, all colour as one affine map of RGB.

Parameters are drawn once and then serve image and mask alike. Angles, shear, scale, ratio and jitter factors
follow torchvision's conventions (RandomAffine, RandomResizedCrop, ColorJitter), as the supplementary F.3 names
them.

Coordinates are continuous: pixel i covers [i, i + 1], so the centre of an image is (W / 2, H / 2). A matrix is
float64 [3, 3] and takes (x, y, 1) of the source to (x, y, 1) of the frame.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from model.image import IMAGE_MEAN, IMAGE_STD

IMAGENET_MEAN = np.array(IMAGE_MEAN, np.float32)
IMAGENET_STD = np.array(IMAGE_STD, np.float32)
NORMALISED = (np.arange(256, dtype=np.float32) / 255 - IMAGENET_MEAN[:, None]) / IMAGENET_STD[:, None]
"""The normalised value of each level of R, G and B: float32 [3, 256]."""

FILL = tuple(round(255 * float(mean)) for mean in IMAGENET_MEAN)
"""The colour outside of the source image."""

FRAMES = 3
"""Frames of a training clip, in the paper."""

MAX_STEP = 1.5
"""Largest step without visible aliasing by linear interpolation: source pixels from one frame pixel to the next."""

REDUCTIONS = (8, 4, 2)
"""A JPEG can be decoded at one of these fractions of its size (1/8, 1/4, 1/2), in less time."""

LUMA = np.array([0.299, 0.587, 0.114])

ColourOps = tuple[tuple[str, float], ...]
"""(brightness | contrast | saturation | hue, factor) in order of application. Grayscale is saturation 0."""


def init_worker(worker_id: int) -> None:
    """``worker_init_fn`` of a DataLoader: OpenCV gets no threads of its own, which would slow down other workers."""
    cv2.setNumThreads(0)


@dataclass(frozen=True)
class Warp:
    """One resampling from the source to a frame of size x size."""

    matrix: np.ndarray
    """Source -> frame (before the spline)."""
    size: int
    spline: np.ndarray | None = None
    """float32 [size, size, 2]: the place (x, y) in the unbent frame that each frame pixel shows; None: not bent."""
    reduction: int = 1
    """Images are given at 1/reduction of the size that ``matrix`` is for; masks are given at their full size."""

    def image(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H / reduction, W / reduction, 3] -> uint8 [S, S, 3], linear; ImageNet's mean colour outside."""
        return self._resample(image, cv2.INTER_LINEAR, FILL, reduction=self.reduction)

    def coverage(self, coverage: np.ndarray) -> np.ndarray:
        """uint8 [H, W], 255 inside -> uint8 [S, S], linear; 0 outside of the source."""
        return self._resample(coverage, cv2.INTER_LINEAR, 0)

    def mask(self, coverage: np.ndarray) -> np.ndarray:
        """``coverage`` above one half: bool [S, S]."""
        return self.coverage(coverage) > 127

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """uint8 [H, W] -> uint8 [S, S], nearest; 0 outside.

        The nearest neighbour is at most half a source pixel off. It leaves no holes where three objects meet, and its
        cost does not depend on the number of labels.
        """
        return self._resample(labels, cv2.INTER_NEAREST, 0)

    def steps(self) -> np.ndarray:
        """Source pixels between neighbouring frame pixels: float64 [2], along x and y of the source."""
        return _steps(np.linalg.inv(self.matrix))

    def _resample(
        self, source: np.ndarray, interpolation: int, fill: int | tuple[int, ...], *, reduction: int = 1
    ) -> np.ndarray:
        inverse = scaling(1 / reduction, 1 / reduction) @ np.linalg.inv(self.matrix)
        if interpolation != cv2.INTER_NEAREST:
            source = _prefilter(source, inverse)
        # OpenCV counts from the centre of the first pixel.
        inverse = translation(-0.5, -0.5) @ inverse
        if self.spline is None:
            matrix = (inverse @ translation(0.5, 0.5))[:2]
            flags = interpolation | cv2.WARP_INVERSE_MAP
            return cv2.warpAffine(
                source,
                matrix,
                (self.size, self.size),
                flags=flags,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=fill,
            )
        # OpenCV's stubs do not know that the second map may be left out.
        return cv2.remap(  # type: ignore[call-overload]
            source,
            cv2.transform(self.spline, inverse[:2]),
            None,
            interpolation,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=fill,
        )


def _prefilter(source: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Blur the source along each axis where a step of one frame pixel is more than MAX_STEP source pixels.

    The Gaussian has the variance of the triangle filter of torchvision's antialiased resize. ``inverse``: frame ->
    source. The bending of a spline is too weak to matter here.
    """
    steps = _steps(inverse)
    if steps.max() <= MAX_STEP:
        return source
    sigmas = np.where(steps > MAX_STEP, steps / np.sqrt(6), 0)
    sizes = 2 * np.ceil(2.5 * sigmas).astype(int) + 1
    return cv2.GaussianBlur(source, sizes.tolist(), sigmaX=sigmas[0], sigmaY=sigmas[1])


def _steps(inverse: np.ndarray) -> np.ndarray:
    return np.hypot(inverse[:2, 0], inverse[:2, 1])


def translation(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def scaling(x: float, y: float) -> np.ndarray:
    return np.diag([x, y, 1.0])


def affine_about(
    centre: tuple[float, float], *, angle: float = 0.0, scale: float = 1.0, shear: float = 0.0
) -> np.ndarray:
    """torchvision's affine, in degrees: shear along x, then scale, then rotate clockwise (as seen) about (x, y)."""
    rotation, shear = np.radians([angle, shear])
    cos, sin, tan = np.cos(rotation), np.sin(rotation), np.tan(shear)
    linear = np.eye(3)
    linear[:2, :2] = scale * np.array([[cos, -cos * tan - sin], [sin, -sin * tan + cos]])
    x, y = centre
    return translation(x, y) @ linear @ translation(-x, -y)


def random_flip(rng: np.random.Generator, width: int) -> np.ndarray:
    """A horizontal flip of an image with this width, with probability one half."""
    return translation(width, 0) @ scaling(-1, 1) if rng.random() < 0.5 else np.eye(3)


def random_affine(
    rng: np.random.Generator,
    centre: tuple[float, float],
    *,
    degrees: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    shear: float = 0.0,
) -> np.ndarray:
    """torchvision's RandomAffine about ``centre``: angle in +-degrees, shear along x in +-shear, scale as given."""
    return affine_about(
        centre,
        angle=rng.uniform(-degrees, degrees),
        scale=rng.uniform(*scale),
        shear=rng.uniform(-shear, shear),
    )


def random_resized_crop(
    rng: np.random.Generator, height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop: (top, left, height, width) of a box inside of the image.

    The area is a fraction ``scale`` of the image's, and the logarithm of the ratio width / height is uniform. If none
    of ten drawn boxes fits into the image, the box is the largest central one with an allowed ratio.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def thin_plate_spline(points: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bookstein's thin-plate spline: the smoothest function with ``values`` [N, D] at ``points`` [N, 2].

    Returns the weights w [N, D] and the affine part a [3, D] of f(x) = (1, x) a + sum_i w_i U(|x - p_i|), where
    U(r) = r^2 log r^2 (Principal Warps, 1989).
    """
    n = len(points)
    squared = ((points[:, None] - points) ** 2).sum(-1)
    system = np.zeros((n + 3, n + 3))
    system[:n, :n] = squared * np.log(squared + np.eye(n))
    system[:n, n], system[:n, n + 1 :] = 1, points
    system[n:, :n] = system[:n, n:].T
    solution = np.linalg.solve(system, np.concatenate([values, np.zeros((3, values.shape[1]))]))
    return solution[:n], solution[n:]


def spline_map(points: np.ndarray, displacements: np.ndarray, size: int, *, cell: int = 4) -> np.ndarray:
    """The places that the pixels of a frame show under a thin-plate spline: float32 [size, size, 2], (x, y) in pixels.

    ``points`` (x, y) and ``displacements`` are float [N, 2] in units of ``size``. A pixel at a point shows
    point + displacement. The spline is evaluated at one point of each cell and interpolated linearly in between, which
    is typically 0.005 pixels off.
    """
    weights, affine = thin_plate_spline(points, points + displacements)
    cells = -(-size // cell) + 2  # one more on either side, so that all pixels lie between centres
    centres = (np.arange(cells) - 0.5) * cell / size
    x, y = np.meshgrid(centres, centres)
    where = [constant + along_x * x + along_y * y for constant, along_x, along_y in affine.T]
    for (point_x, point_y), weight in zip(points, weights, strict=True):
        squared = (x - point_x) ** 2 + (y - point_y) ** 2 + 1e-12  # never log 0
        kernel = squared * np.log(squared)
        where[0] += weight[0] * kernel
        where[1] += weight[1] * kernel
    coarse = (size * cv2.merge(where)).astype(np.float32)
    dense = cv2.resize(coarse, (cells * cell, cells * cell), interpolation=cv2.INTER_LINEAR)
    return dense[cell : cell + size, cell : cell + size]


def random_spline(
    rng: np.random.Generator, size: int, *, probability: float = 1 / 3, points: int = 12, sigma: float = 0.02
) -> np.ndarray | None:
    """A thin-plate spline over control points anywhere in the frame, or None (supplementary F.3.1)."""
    if rng.random() >= probability:
        return None
    return spline_map(rng.random((points, 2)), rng.normal(0, sigma, (points, 2)), size)


def random_jitter(
    rng: np.random.Generator,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float = 0.0,
    grayscale: float = 0.0,
) -> ColourOps:
    """torchvision's ColorJitter, in random order, then RandomGrayscale with probability ``grayscale``.

    Factors are uniform in 1 +- the argument, the shift of hue in +-hue of a full circle.
    """
    ops = [
        ('brightness', rng.uniform(1 - brightness, 1 + brightness)),
        ('contrast', rng.uniform(1 - contrast, 1 + contrast)),
        ('saturation', rng.uniform(1 - saturation, 1 + saturation)),
    ]
    if hue:
        ops.append(('hue', rng.uniform(-hue, hue)))
    ops = [ops[i] for i in rng.permutation(len(ops))]
    if rng.random() < grayscale:
        ops.append(('saturation', 0.0))
    return tuple(ops)


def recolour(image: np.ndarray, ops: ColourOps) -> np.ndarray:
    """Apply colour operations to uint8 [H, W, 3] RGB.

    All but hue are affine in RGB, given the mean colour that contrast refers to. They compose to one map, which is
    rounded and clipped once, where torchvision does both after each step. Hue is shifted in HSV as PIL does it.
    """
    colour = np.eye(3, 4)
    mean = np.array(cv2.mean(image)[:3])
    for name, factor in ops:
        if name == 'hue':
            image = _shift_hue(_transform(image, colour), factor)
            colour, mean = np.eye(3, 4), np.array(cv2.mean(image)[:3])
            continue
        step = factor * np.eye(3, 4)
        if name == 'contrast':
            step[:, 3] = (1 - factor) * LUMA @ mean
        elif name == 'saturation':
            step[:, :3] += (1 - factor) * LUMA
        colour = step[:, :3] @ colour + step * [0, 0, 0, 1]
        mean = step @ [*mean, 1]
    return _transform(image, colour)


def _transform(image: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return image if np.array_equal(colour, np.eye(3, 4)) else cv2.transform(image, colour)


def _shift_hue(image: np.ndarray, shift: float) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(256 * shift) % 256)  # wraps around, as hue does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def normalise(frames: list[np.ndarray]) -> np.ndarray:
    """T frames uint8 [H, W, 3] -> float32 [T, 3, H, W] with ImageNet's mean and deviation."""
    rgb = np.empty((len(frames), 3, *frames[0].shape[:2]), np.float32)
    for frame, planes in zip(frames, rgb, strict=True):
        for levels, table, plane in zip(cv2.split(frame), NORMALISED, planes, strict=True):
            cv2.LUT(levels, table, dst=plane)
    return rgb


@dataclass(frozen=True)
class Augmentation:
    """What was drawn for one sample."""

    warps: tuple[Warp, ...]
    """One per frame, with a common ``reduction``."""
    colour: ColourOps
    """The operations that all frames share. They are applied to the source first."""
    frame_colours: tuple[ColourOps, ...]
    """The further operations of each frame, which are also applied to the source."""


def draw_static(rng: np.random.Generator, height: int, width: int, *, size: int, frames: int = FRAMES) -> Augmentation:
    """Frames from one image (supplementary F.3.1)."""
    centre = (width / 2, height / 2)
    zoom = random_affine(rng, centre, scale=(0.8, 1.5))
    base = random_flip(rng, width) @ zoom
    colour = random_jitter(rng, brightness=0.1, contrast=0.05, saturation=0.05, hue=0.05, grayscale=0.05)

    ratio = size / min(height, width)
    warps = []
    for _ in range(frames):
        affine = random_affine(rng, centre, degrees=20, scale=(0.9, 1.1), shear=10)
        left = int(rng.integers(max(size, int(width * ratio)) - size + 1))
        top = int(rng.integers(max(size, int(height * ratio)) - size + 1))
        matrix = translation(-left, -top) @ scaling(ratio, ratio) @ affine @ base
        warps.append(Warp(matrix, size, random_spline(rng, size)))
    own = [random_jitter(rng, brightness=0.1, contrast=0.05, saturation=0.05) for _ in range(frames)]
    return Augmentation(reduced(warps), colour, tuple(own))


def draw_video(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    size: int,
    crop_scale: tuple[float, float],
    frames: int = FRAMES,
) -> Augmentation:
    """Frames of one video (supplementary F.3.2); BL30K has a wider ``crop_scale`` (F.3.3)."""
    flip = random_flip(rng, width)
    top, left, h, w = random_resized_crop(rng, height, width, scale=crop_scale, ratio=(0.75, 1.25))
    base = scaling(size / w, size / h) @ translation(-left, -top) @ flip
    colour = random_jitter(rng, brightness=0.1, contrast=0.03, saturation=0.03, grayscale=0.05)

    centre = (size / 2, size / 2)
    warps = [Warp(random_affine(rng, centre, degrees=15, shear=10) @ base, size) for _ in range(frames)]
    own = [random_jitter(rng, brightness=0.01, contrast=0.01, saturation=0.01) for _ in range(frames)]
    return Augmentation(reduced(warps), colour, tuple(own))


def reduced(warps: list[Warp]) -> tuple[Warp, ...]:
    """The same warps, with the largest ``reduction`` (see ``read_image``) at which no warp enlarges the image."""
    step = min(warp.steps().min() for warp in warps)
    reduction = next((factor for factor in REDUCTIONS if factor <= step), 1)
    return tuple(replace(warp, reduction=reduction) for warp in warps)
