"""Augmentation: torchvision's conventions, distributions, alignment of image and mask, no aliasing."""

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image
from torchvision import transforms

from dataset import augment
from dataset.augment import FILL, Warp, affine_about, recolour, scaling, spline_map, thin_plate_spline, translation
from dataset.io import read_image
from tests.conftest import GOLDEN

ROOT = GOLDEN.parent
DRAWS = 4000
BILINEAR = transforms.InterpolationMode.BILINEAR
JITTER = {'brightness': 0.1, 'contrast': 0.05, 'saturation': 0.05, 'hue': 0.05}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope='module')
def photo():
    return read_image(ROOT / 'golden' / 'clip' / '00000.png')


def checkerboard(height=240, width=320, cell=16):
    y, x = np.mgrid[:height, :width] // cell
    return ((x + y) % 2 * 255).astype(np.uint8)


def smooth_image(height, width):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 11), np.cos(y / 13), np.sin((x + y) / 17)]
    return np.stack([128 + 100 * wave for wave in waves], axis=-1).astype(np.uint8)


def assert_uniform(values, low, high):
    """Inside of [low, high], with the mean and the variance of the uniform distribution."""
    values, spread = np.asarray(values), high - low
    assert low <= values.min() < low + 0.01 * spread
    assert high - 0.01 * spread < values.max() <= high
    assert values.mean() == pytest.approx((low + high) / 2, abs=4 * spread / np.sqrt(12 * len(values)))
    assert values.var() == pytest.approx(spread**2 / 12, rel=0.07)


# Geometry


@pytest.mark.parametrize(
    'affine', [{'angle': 17}, {'shear': -9}, {'scale': 1.2}, {'angle': -12, 'scale': 0.9, 'shear': 8}], ids=str
)
def test_affine_is_torchvisions(affine):
    image = smooth_image(96, 96)
    ours = Warp(affine_about((48, 48), **affine), 96).image(image)
    options = {'angle': 0, 'scale': 1, 'shear': 0} | affine
    options['shear'] = [options['shear'], 0]
    theirs = F.affine(
        torch.from_numpy(image).permute(2, 0, 1), translate=[0, 0], interpolation=BILINEAR, fill=FILL, **options
    )
    difference = np.abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy())
    inside = Warp(affine_about((48, 48), **affine), 96).mask(np.full((96, 96), 255, np.uint8))
    inside = cv2.erode(inside.astype(np.uint8), np.ones((5, 5)), borderValue=0) > 0  # edges blend with the fill
    assert difference[inside].max() <= 4  # coordinates in units of 1/32 pixel
    assert difference[inside].mean() < 0.7


def test_enlarging_is_torchvisions_resize(photo):
    height, width = photo.shape[:2]
    ours = Warp(scaling(256 / width, 256 / height), 256).image(photo)
    theirs = F.resize(torch.from_numpy(photo).permute(2, 0, 1), [256, 256], antialias=False).permute(1, 2, 0)
    inside = slice(2, -2)  # the outermost pixels blend with the fill
    difference = np.abs(ours.astype(int) - theirs.numpy())[inside, inside]
    assert difference.max() <= 6
    assert difference.mean() < 0.6


def test_flip_and_crop_copy_pixels(photo):
    width = photo.shape[1]
    flip = translation(width, 0) @ scaling(-1, 1)
    frame = Warp(translation(-30, -5) @ flip, 96).image(photo)
    np.testing.assert_array_equal(frame, photo[:, ::-1][5:101, 30:126])


def test_moments_of_random_affine(rng):
    centre = (160.0, 120.0)
    angles, scales, shears = [], [], []
    for _ in range(DRAWS):
        matrix = augment.random_affine(rng, centre, degrees=20, scale=(0.9, 1.1), shear=10)
        np.testing.assert_allclose(matrix @ [*centre, 1], [*centre, 1])
        scale = np.sqrt(np.linalg.det(matrix[:2, :2]))
        angle = np.arctan2(matrix[1, 0], matrix[0, 0])
        sheared = affine_about((0, 0), angle=-np.degrees(angle))[:2, :2] @ matrix[:2, :2] / scale
        np.testing.assert_allclose(sheared[[0, 1, 1], [0, 0, 1]], [1, 0, 1], atol=1e-9)
        angles.append(np.degrees(angle))
        scales.append(scale)
        shears.append(np.degrees(np.arctan(-sheared[0, 1])))
    assert_uniform(angles, -20, 20)
    assert_uniform(scales, 0.9, 1.1)
    assert_uniform(shears, -10, 10)


@pytest.mark.parametrize('size', [(480, 854), (480, 480), (600, 300)])
def test_random_resized_crop_is_torchvisions(rng, size):
    """Position and size have the same means and deviations, and where no box fits, the same box is taken."""
    options = {'scale': (0.36, 1.0), 'ratio': (0.75, 1.25)}
    ours = np.array([augment.random_resized_crop(rng, *size, **options) for _ in range(DRAWS)])
    torch.manual_seed(0)
    image = torch.empty(1, *size)
    draw = transforms.RandomResizedCrop.get_params
    theirs = np.array([draw(image, list(options['scale']), list(options['ratio'])) for _ in range(DRAWS)])
    error = 5 * theirs.std(axis=0) / np.sqrt(DRAWS / 2) + 1e-9
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < error).all()
    np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.07)
    top, left, height, width = ours.T
    assert (ours >= 0).all()
    assert ((top + height <= size[0]) & (left + width <= size[1])).all()
    fallback = {'scale': (2.0, 2.0), 'ratio': (0.75, 1.25)}
    assert augment.random_resized_crop(rng, *size, **fallback) == draw(image, *map(list, fallback.values()))


def angle_and_shear(matrix):
    """The angle and the shear, in degrees, of a matrix that flips and scales the axes, shears along x, and rotates."""
    across, down = matrix[:2, 0] * np.sign(np.linalg.det(matrix)), matrix[:2, 1]
    angle = np.arctan2(across[1], across[0])
    x, y = affine_about((0, 0), angle=-np.degrees(angle))[:2, :2] @ down
    return np.degrees([angle, np.arctan(-x / y)])


@pytest.mark.parametrize(
    ('stage', 'degrees', 'clip', 'frame'),
    [
        ('static', 20, {'brightness': 0.1, 'contrast': 0.05, 'saturation': 0.05, 'hue': 0.05}, (0.1, 0.05, 0.05)),
        ('video', 15, {'brightness': 0.1, 'contrast': 0.03, 'saturation': 0.03}, (0.01, 0.01, 0.01)),
    ],
)
def test_ranges_are_the_papers(rng, monkeypatch, stage, degrees, clip, frame):
    monkeypatch.setattr(augment, 'spline_map', lambda *args: None)
    options = {'crop_scale': (0.36, 1.0)} if stage == 'video' else {}
    draws = [getattr(augment, f'draw_{stage}')(rng, 300, 400, size=96, **options) for _ in range(2000)]
    angles, shears = np.transpose([angle_and_shear(warp.matrix) for drawn in draws for warp in drawn.warps])
    assert_uniform(angles, -degrees, degrees)
    assert_uniform(shears, -10, 10)
    for name, spread in clip.items():
        middle = 0 if name == 'hue' else 1
        values = [dict(drawn.colour[: len(clip)])[name] for drawn in draws]
        assert_uniform(values, middle - spread, middle + spread)
    assert np.mean([drawn.colour[len(clip) :] == (('saturation', 0.0),) for drawn in draws]) == pytest.approx(
        0.05, abs=0.02
    )
    own = [dict(ops) for drawn in draws for ops in drawn.frame_colours]
    for name, spread in zip(('brightness', 'contrast', 'saturation'), frame, strict=True):
        assert_uniform([ops[name] for ops in own], 1 - spread, 1 + spread)
    assert {len(ops) for ops in own} == {3}


def test_static_frames_cover_the_shorter_side(rng):
    """Zoom and flip are shared by the three frames; each has a crop of its own inside of the resized image."""
    height, width, size = 200, 300, 96
    zooms, flips, lefts, splines = [], [], [], []
    for _ in range(1000):
        drawn = augment.draw_static(rng, height, width, size=size)
        ratio = size / height
        linear = [warp.matrix[:2, :2] / ratio for warp in drawn.warps]
        scales = [np.sqrt(abs(np.linalg.det(part))) for part in linear]
        zooms += scales
        flipped = {np.linalg.det(part) < 0 for part in linear}
        assert len(flipped) == 1
        flips.append(flipped.pop())
        for warp in drawn.warps:
            offset = ratio * np.array([width, height]) / 2 - (warp.matrix @ [width / 2, height / 2, 1])[:2]
            lefts.append(offset[0])
            assert offset[1] == pytest.approx(0, abs=1e-9)
        splines += [warp.spline is not None for warp in drawn.warps]
    assert 0.8 * 0.9 <= min(zooms) < 0.8
    assert 1.5 < max(zooms) <= 1.5 * 1.1
    assert np.mean(zooms) == pytest.approx(1.15, abs=0.03)
    assert np.mean(flips) == pytest.approx(0.5, abs=0.06)
    assert np.mean(splines) == pytest.approx(1 / 3, abs=0.04)
    np.testing.assert_allclose(np.unique(np.round(lefts, 6)), range(49))  # 300 -> 144, minus 96


def test_video_frames_share_crop_and_flip_and_turn_about_their_centre(rng):
    drawn = augment.draw_video(rng, 480, 854, size=384, crop_scale=(0.36, 1.0))
    centres = [np.linalg.inv(warp.matrix) @ [192, 192, 1] for warp in drawn.warps]
    np.testing.assert_allclose(centres, [centres[0]] * 3)
    assert len({np.linalg.det(warp.matrix).round(9) for warp in drawn.warps}) == 1
    assert all(warp.spline is None for warp in drawn.warps)


def draw_davis(rng, height, width, *, size):
    return augment.draw_video(rng, height, width, size=size, crop_scale=(0.36, 1.0))


def draw_bl30k(rng, height, width, *, size):
    return augment.draw_video(rng, height, width, size=size, crop_scale=(0.25, 1.0))


@pytest.mark.parametrize(
    ('draw', 'height', 'width', 'composed', 'sequence'),
    [
        (augment.draw_static, 321, 481, 0.044, 0.083),
        (augment.draw_static, 400, 400, 0.064, 0.123),
        (draw_davis, 480, 854, 0.011, 0.059),
        (draw_bl30k, 512, 768, 0.008, 0.059),
    ],
)
def test_share_of_filled_pixels(rng, monkeypatch, draw, height, width, composed, sequence):
    """The figures of docs/paper.md for a single resampling, and for transforms that are applied one by one."""
    affine, drawn, size = augment.random_affine, [], 384
    monkeypatch.setattr(augment, 'random_affine', lambda *a, **o: drawn.append(affine(*a, **o)) or drawn[-1])
    y, x = np.mgrid[4:size:8, 4:size:8].reshape(2, -1)
    frame = np.stack([x + 0.5, y + 0.5, np.ones(len(x))])

    def inside(points, height, width):
        return (points[:2] >= 0).all(0) & (points[0] < width) & (points[1] < height)

    filled = []
    for _ in range(300):
        drawn.clear()
        warps = draw(rng, height, width, size=size).warps
        for warp, own in zip(warps, drawn[-3:], strict=True):
            look = frame if warp.spline is None else np.vstack([warp.spline[y, x].T, frame[2:]])
            source = np.linalg.inv(warp.matrix) @ look
            known = inside(source, height, width)
            # One by one, each transform sees only the result of the one before: the spline sees the crop, and the
            # affine map sees the zoomed image (static) or the resized crop (video).
            kept = known & inside(look, size, size)
            if draw is augment.draw_static:
                kept &= inside(drawn[0] @ source, height, width)
            else:
                kept &= inside(np.linalg.inv(own) @ look, size, size)
            filled.append((1 - known.mean(), 1 - kept.mean()))
    assert np.mean(filled, axis=0) == pytest.approx([composed, sequence], abs=0.004)


# Thin-plate spline


def test_spline_goes_through_its_points_and_bends_no_affine_map(rng):
    points, values = rng.random((12, 2)), rng.normal(size=(12, 2))
    weights, affine = thin_plate_spline(points, values)
    squared = ((points[:, None] - points) ** 2).sum(-1)
    kernel = squared * np.log(squared + np.eye(12))
    np.testing.assert_allclose(kernel @ weights + affine[0] + points @ affine[1:], values, atol=1e-9)

    slope = np.array([[1.1, -0.2], [0.3, 0.9]])
    weights, affine = thin_plate_spline(points, points @ slope + [0.4, -0.1])
    np.testing.assert_allclose(weights, 0, atol=1e-9)
    np.testing.assert_allclose(affine, [[0.4, -0.1], *slope], atol=1e-9)


def test_interpolated_spline_is_accurate(rng):
    size, errors = 384, []
    centres = (np.arange(size) + 0.5) / size
    at = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    for _ in range(10):
        points, displacements = rng.random((12, 2)), rng.normal(0, 0.02, (12, 2))
        weights, affine = thin_plate_spline(points, points + displacements)
        squared = ((at[:, None] - points) ** 2).sum(-1)
        exact = size * ((squared * np.log(squared + 1e-300)) @ weights + affine[0] + at @ affine[1:])
        errors.append(np.abs(spline_map(points, displacements, size).reshape(-1, 2) - exact).max(axis=1))
    assert np.mean(errors) < 0.01  # pixels
    assert np.percentile(errors, 99.9) < 0.2


def test_displacements_of_the_control_points(rng, monkeypatch):
    """Points are uniform, displacements have a sigma of 0.02 of the size, and the map moves each point by its own."""
    drawn, size = [], 96

    def spy(points, displacements, size):
        drawn.append((points, displacements))
        return spline_map(points, displacements, size)

    monkeypatch.setattr(augment, 'spline_map', spy)
    found = []
    for _ in range(300):
        where = augment.random_spline(rng, size, probability=1)
        points = size * drawn[-1][0]
        pixels = points.astype(int)
        found.append(where[pixels[:, 1], pixels[:, 0]] - (pixels + 0.5))
    points, displacements = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    assert points.shape == (300 * 12, 2)
    assert_uniform(points[:, 0], 0, 1)
    assert_uniform(points[:, 1], 0, 1)
    assert displacements.mean() == pytest.approx(0, abs=0.001)
    assert displacements.std() == pytest.approx(0.02, rel=0.04)
    assert np.median(np.abs(np.concatenate(found) - size * displacements)) < 0.2  # within a pixel of the point


# Resampling


def test_image_mask_and_labels_are_aligned(rng):
    board = checkerboard()
    image = cv2.merge([board] * 3)
    draws = [augment.draw_static(rng, *board.shape, size=128) for _ in range(5)]
    draws += [augment.draw_video(rng, *board.shape, size=128, crop_scale=(0.36, 1.0)) for _ in range(3)]
    warps = [warp for drawn in draws for warp in drawn.warps]
    assert any(warp.spline is not None for warp in warps)
    for warp in warps:
        frame, mask, labels = warp.image(image)[..., 1], warp.mask(board), warp.labels(board // 255)
        inside = warp.mask(np.full_like(board, 255))
        inside = cv2.erode(inside.astype(np.uint8), np.ones((3, 3)), borderValue=1) > 0
        clear = inside & (np.abs(frame - 127.5) > 2)  # OpenCV rounds one channel and three channels differently
        assert clear.mean() > 0.9 * inside.mean()
        np.testing.assert_array_equal(mask[clear], frame[clear] > 127)
        pure = inside & ((frame == 0) | (frame == 255))
        # The nearest pixel is at most half a source pixel off, so labels only differ where a neighbour's does.
        agreement = labels[pure] == frame[pure] // 255
        assert agreement.mean() > 0.999


def test_outside_is_mean_colour_and_no_object():
    warp = Warp(translation(40, 0), 96)
    frame = warp.image(np.full((96, 96, 3), 255, np.uint8))
    assert (frame[:, :40] == FILL).all()
    assert (frame[:, 40:] == 255).all()
    np.testing.assert_allclose(augment.normalise([frame])[0, :, 0, 0], 0, atol=0.01)
    for mask in (warp.mask(np.full((96, 96), 255, np.uint8)), warp.labels(np.full((96, 96), 1, np.uint8))):
        assert not mask[:, :40].any()
        assert mask[:, 40:].all()


@pytest.mark.parametrize('angle', [0, 20])
@pytest.mark.parametrize('axis', [0, 1])
def test_nothing_aliases_at_a_reduction_of_2_2(axis, angle):
    """Stripes of three pixels, finer than the reduced grid can show, come out gray, in image and mask."""
    size, reduction = 192, 2.2
    side = round(size * reduction)
    stripes = (np.indices((side, side))[axis] % 3 == 0) * np.uint8(255)
    matrix = scaling(1 / reduction, 1 / reduction) @ affine_about((side / 2, side / 2), angle=angle)
    inside = slice(40, -40)
    frame = Warp(matrix, size).image(cv2.merge([stripes] * 3))[inside, inside]
    naive = cv2.warpAffine(stripes, matrix[:2], (size, size), flags=cv2.INTER_LINEAR)[inside, inside]
    theirs = F.resize(torch.from_numpy(stripes)[None], [size, size], antialias=True)[0, inside, inside].float()
    assert naive.std() > 45
    assert frame.std() < 0.3 * naive.std()
    assert frame.std() < 1.2 * theirs.std()
    assert frame.mean() == pytest.approx(85, abs=2)


def test_a_reduction_looks_like_torchvisions_antialiased_one(photo):
    height, width = photo.shape[:2]
    size = 48
    ours = Warp(scaling(size / width, size / height), size).image(photo)
    theirs = F.resize(torch.from_numpy(photo).permute(2, 0, 1), [size, size], antialias=True).permute(1, 2, 0)
    inside = slice(1, -1)
    difference = np.abs(ours.astype(int) - theirs.numpy())[inside, inside]
    naive = cv2.resize(photo, (size, size), interpolation=cv2.INTER_LINEAR).astype(int)
    assert difference.mean() < 0.5 * np.abs(naive - theirs.numpy())[inside, inside].mean()


# Colour


@pytest.mark.parametrize('name', ['brightness', 'contrast', 'saturation', 'hue'])
def test_each_colour_operation_is_torchvisions(photo, name):
    for factor in (-0.05, 0.03) if name == 'hue' else (0.0, 0.9, 1.1):
        theirs = getattr(F, f'adjust_{name}')(Image.fromarray(photo), factor)
        difference = np.abs(recolour(photo, ((name, factor),)).astype(int) - np.asarray(theirs))
        assert difference.mean() < 1
        # In HSV of 8 bits a step of hue is a few grey levels.
        assert difference.max() <= (20 if name == 'hue' else 1)


def test_composed_colours_are_close_to_torchvisions_chain(rng, photo):
    for _ in range(20):
        ops = augment.random_jitter(rng, **JITTER)
        image = Image.fromarray(photo)
        for name, factor in ops:
            image = getattr(F, f'adjust_{name}')(image, factor)
        difference = np.abs(recolour(photo, ops).astype(int) - np.asarray(image))
        assert difference.mean() < 3
        assert np.percentile(difference, 99) < 13


def test_distribution_of_jitter(rng):
    draws = [augment.random_jitter(rng, **JITTER, grayscale=0.05) for _ in range(DRAWS)]
    for name, spread in JITTER.items():
        middle = 0 if name == 'hue' else 1
        assert_uniform([dict(ops[:4])[name] for ops in draws], middle - spread, middle + spread)
    orders = [tuple(name for name, _ in ops[:4]) for ops in draws]
    assert all(abs(orders.count(order) - DRAWS / 24) < 60 for order in set(orders))
    assert len(set(orders)) == 24
    assert np.mean([ops[4:] == (('saturation', 0.0),) for ops in draws]) == pytest.approx(0.05, abs=0.015)
    assert all(len(ops) in (4, 5) for ops in draws)


def test_normalise_is_torchvisions(photo):
    expected = F.normalize(F.to_tensor(photo), augment.IMAGENET_MEAN.tolist(), augment.IMAGENET_STD.tolist())
    np.testing.assert_allclose(augment.normalise([photo, photo])[1], expected, atol=1e-6)
