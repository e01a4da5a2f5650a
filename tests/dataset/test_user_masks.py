"""Masks that users bring: how each form of mask is read, and which forms are refused."""

import io
import logging
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset.io import PALETTE, DataError, read_mask, write_mask
from dataset.mask_files import FrameMasks
from dataset.user_masks import UserMasks
from tests.conftest import GOLDEN

H, W = 40, 60
RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
CASES = Path('/work/shared/cases')


def scene(*labels: int) -> np.ndarray:
    """uint8 [H, W]: an ellipse of each label on background, from left to right, each one lower than the one before."""
    mask = np.zeros((H, W), np.uint8)
    for place, label in enumerate(labels):
        cv2.ellipse(mask, (10 + 19 * place, 16 + 4 * place), (8, 12), 0, 0, 360, label, -1)
    return mask


def indexed(labels: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    """A palette image of these colours, by default those of PALETTE."""
    image = Image.fromarray(labels)
    image.putpalette(np.array(colours or PALETTE, np.uint8).tobytes())
    return image


def painted(labels: np.ndarray, *colours: tuple[int, ...]) -> np.ndarray:
    """uint8 [H, W, C] in the colours of labels 0, 1, 2 ..."""
    return np.array(colours, np.uint8)[labels]


@pytest.fixture
def save(tmp_path):
    def write(image: np.ndarray | Image.Image, name: str = 'a.png', **options) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
        return path

    return write


def read(*files: Path, size=(H, W)) -> list[np.ndarray]:
    """The labels of a video with a mask in each frame."""
    masks = UserMasks([FrameMasks(frame, (path,)) for frame, path in enumerate(files)])
    return [masks.read(frame, size) for frame in range(len(files))]


def read_objects(frames: list[list[Path]], *, binary: bool = False) -> list[np.ndarray]:
    """The labels of a video with files of the objects 1, 2 ... in each frame."""
    given = [
        FrameMasks(frame, tuple(files), tuple(range(1, len(files) + 1)), binary) for frame, files in enumerate(frames)
    ]
    masks = UserMasks(given)
    return [masks.read(frame, (H, W)) for frame in range(len(frames))]


def equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def lines(caplog, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.INFO)


# Palettes


@pytest.mark.parametrize(
    'colours',
    [
        (BLACK, RED, GREEN),
        tuple(map(tuple, PALETTE)),
        tuple((value, value, value) for value in range(256)),
        (BLACK, (1, 1, 1), (2, 2, 2)),
        (BLACK, WHITE, WHITE),  # a colour may stand for two labels, a label not for two colours
    ],
)
def test_indices_are_labels_where_index_0_is_black(save, caplog, colours):
    mask = scene(1, 2)
    equal(read(save(indexed(mask, *colours)))[0], mask)
    assert not caplog.records


@pytest.mark.parametrize('background', [WHITE, RED, (1, 0, 0)])
def test_indices_are_labels_where_index_0_is_transparent(save, caplog, background):
    mask = scene(2, 1)
    for transparency in (0, b'\0\xff\xff'):
        path = save(indexed(mask, background, GREEN, BLACK), transparency=transparency)
        equal(read(path)[0], mask)
    assert not caplog.records


@pytest.mark.parametrize(
    ('colours', 'stored', 'expected'),
    [
        ((WHITE, BLACK), (1, 0), (0, 1)),
        (((128, 0, 0), BLACK, (0, 128, 0)), (1, 0, 2), (0, 1, 2)),
        (((0, 128, 0), (128, 0, 0), BLACK), (2, 1, 0), (0, 1, 2)),
        (((0, 0, 128), BLACK), (1, 0), (0, 4)),
        ((BLUE, BLACK, RED), (1, 2, 0), (0, 1, 2)),  # red, the object further up, comes first
        (((2, 2, 2), BLACK, (1, 1, 1)), (1, 2, 0), (0, 1, 2)),
    ],
)
def test_a_palette_in_another_order_is_the_picture_that_a_viewer_shows(save, caplog, colours, stored, expected):
    mask = scene(*range(1, len(stored)))
    equal(read(save(indexed(np.array(stored, np.uint8)[mask], *colours)))[0], np.array(expected, np.uint8)[mask])
    assert 'the colours of the palettes count' in caplog.text
    assert 'index 0 of' in caplog.text


def test_an_index_of_two_colours_makes_all_palettes_pictures(save, caplog):
    """A program that makes PNGs smaller may store each file with a palette of only the colours that it shows."""
    first, second, both = scene(1), scene(2), scene(1, 2)
    files = [
        save(indexed(both, BLACK, (128, 0, 0), (0, 128, 0)), '0.png'),
        save(indexed((second > 0).astype(np.uint8), BLACK, (0, 128, 0)), '1.png'),
        save(indexed(first, BLACK, (128, 0, 0)), '2.png'),
    ]
    for found, expected in zip(read(*files), (both, second, first), strict=True):
        equal(found, expected)
    assert 'index 1 is #800000 in' in caplog.text
    equal(read(files[1])[0], second > 0)  # in this file alone, the indices can be labels


def test_one_reordered_palette_makes_all_palettes_pictures(save):
    mask = scene(1, 2)
    files = [
        save(indexed(mask), '0.png'),
        save(indexed(np.array([1, 0, 2], np.uint8)[mask], (128, 0, 0), BLACK, (0, 128, 0)), '1.png'),
    ]
    for found in read(*files):
        equal(found, mask)


@pytest.mark.parametrize('transparency', [2, b'\xff\xff\0'])
def test_a_transparent_index_other_than_0_is_background(save, transparency):
    """A viewer shows a red and a green object on a transparent background, or one black object."""
    mask = scene(1, 2)
    stored = np.array([2, 0, 1], np.uint8)[mask]
    equal(read(save(indexed(stored, RED, GREEN, WHITE), transparency=transparency))[0], mask)
    equal(
        read(save(indexed(np.where(mask > 0, 0, 2).astype(np.uint8), BLACK, BLACK, WHITE), transparency=transparency))[
            0
        ],
        mask > 0,
    )


def test_a_palette_of_fewer_colours_than_are_used(save):
    mask = scene(1, 7)
    equal(read(save(indexed(mask, BLACK, RED), 'a.bmp'))[0], mask)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.permutations(range(7)), st.permutations(range(7)), st.integers(0, 2**32 - 1))
def test_any_order_of_a_palette_gives_the_same_objects(first, second, seed):
    """Two frames of one video in palettes of their own."""
    rng = np.random.default_rng(seed)
    frames = [rng.integers(0, 7, (5, 6), np.uint8).repeat(4, 0).repeat(4, 1) for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f'{number}.png') for number in range(2)]
        for path, mask, order in zip(files, frames, (first, second), strict=True):
            mask[:4, :4] = 0  # some background
            stored = np.array(order, np.uint8)[mask]
            indexed(stored, *PALETTE[np.argsort(order)]).save(path)
        found = read(*files, size=frames[0].shape)
    used = np.unique(np.concatenate(frames))
    if first[0] != 0 or second[0] != 0 or any(first[i] == second[j] for i in used for j in used if i != j):
        for each, expected in zip(found, frames, strict=True):
            equal(each, expected)
    else:  # indices are labels, in another order
        for each, expected, order in zip(found, frames, (first, second), strict=True):
            equal(each, np.array(order, np.uint8)[expected])


# Pictures


@pytest.mark.parametrize('colour', [RED, (250, 50, 83), (0, 0, 255)])
def test_one_colour_on_black_is_object_1(save, caplog, colour):
    mask = scene(1)
    equal(read(save(painted(mask, BLACK, colour)))[0], mask)
    [line] = lines(caplog, logging.INFO)
    assert '#{:02x}{:02x}{:02x} is object 1'.format(*colour) in line


def test_colours_are_numbered_by_first_appearance_over_all_files(save, caplog):
    colours = (BLACK, (52, 209, 183), RED, (250, 250, 55))
    frames = [scene(2), scene(3, 2), scene(1, 3)]
    files = [save(painted(mask, *colours), f'{number}.png') for number, mask in enumerate(frames)]
    numbers = np.array([0, 3, 1, 2], np.uint8)  # red, yellow, then teal
    for found, mask in zip(read(*files), frames, strict=True):
        equal(found, numbers[mask])
    [line] = lines(caplog, logging.INFO)
    assert '#ff0000 is object 1, #fafa37 is object 2, #34d1b7 is object 3' in line


def test_first_means_row_by_row(save):
    mask = np.zeros((8, 9), np.uint8)
    mask[3:7, :4] = 1
    mask[2:6, 5:] = 2
    equal(read(save(painted(mask, BLACK, RED, GREEN)), size=(8, 9))[0], np.array([0, 2, 1], np.uint8)[mask])
    equal(read(save(painted(mask.T.copy(), BLACK, RED, GREEN)), size=(9, 8))[0], mask.T)


@pytest.mark.parametrize('labels', [(1, 2), (2, 4), (15, 3, 20)])
def test_davis_colours_keep_their_labels(save, caplog, labels):
    mask = scene(*labels)
    equal(read(save(PALETTE[mask]))[0], mask)
    [rgba] = read(save(np.dstack([PALETTE[mask], np.uint8(255) * (mask > 0)])))
    equal(rgba, mask)
    assert not caplog.records


def test_one_other_colour_in_the_video_and_no_colour_is_of_davis(save):
    files = [save(PALETTE[scene(2)], '0.png'), save(painted(scene(1), BLACK, (77, 1, 2)), '1.png')]
    first, second = read(*files)
    equal(first, scene(1))
    equal(second, 2 * scene(1))


@pytest.mark.parametrize(
    'write',
    [
        lambda mask: mask * np.uint8(255),
        lambda mask: painted(mask, BLACK, WHITE),
        lambda mask: mask > 0,
        lambda mask: mask.astype(np.uint16) * 65535,
        lambda mask: painted(mask, (*BLACK, 255), (*WHITE, 255)),
        lambda mask: painted(mask, (*WHITE, 0), (*WHITE, 255)),
    ],
)
def test_white_is_the_object_of_black_and_white(save, caplog, write):
    mask = scene(1)
    equal(read(save(write(mask)))[0], mask)
    assert not caplog.records


@pytest.mark.parametrize('colour', [BLACK, WHITE, RED, (0, 0, 1)])
@pytest.mark.parametrize('hidden', [BLACK, WHITE, GREEN])
def test_one_opaque_colour_on_transparent_is_the_object(save, colour, hidden):
    mask = scene(1)
    equal(read(save(painted(mask, (*hidden, 0), (*colour, 255))))[0], mask)


def test_black_beside_other_colours_on_transparent_is_background(save):
    mask = scene(1, 2)
    equal(read(save(painted(mask, (0, 0, 0, 0), (*BLACK, 255), (*RED, 255))))[0], mask == 2)
    equal(read(save(painted(mask, (0, 0, 0, 255), (*BLACK, 0), (*RED, 255))))[0], mask == 2)


def test_black_alone_on_transparent_is_an_object_among_others_of_the_video(save):
    """Each file shows one object on transparent, as when layers are exported one by one."""
    files = [save(painted(scene(1), (0, 0, 0, 0), (*colour, 255)), f'{colour}.png') for colour in (BLACK, RED, WHITE)]
    for label, found in enumerate(read(*files), 1):
        equal(found, label * scene(1))


def test_gray_and_alpha(save):
    mask = scene(1)
    equal(read(save(painted(mask, (0, 0), (0, 255)), 'a.png'))[0], mask)
    equal(read(save(painted(mask, (9, 0), (255, 255)), 'b.png'))[0], mask)
    equal(read(save(painted(mask, (0, 255), (7, 255)), 'c.png'))[0], 7 * mask)


def test_a_colour_that_stands_for_transparent(save):
    mask = scene(1)
    equal(read(save(painted(mask, WHITE, RED), 'a.png', transparency=WHITE))[0], mask)
    equal(read(save(np.where(mask > 0, 3, 200).astype(np.uint8), 'b.png', transparency=200))[0], 3 * mask)
    equal(read(save(indexed(np.where(mask > 0, 1, 5).astype(np.uint8), *6 * [RED]), 'c.gif', transparency=5))[0], mask)


@pytest.mark.parametrize('colours', [(WHITE, RED), (WHITE, RED, GREEN), ((53, 42, 135), (249, 251, 14))])
def test_a_picture_without_black_or_transparent_is_a_question(save, colours):
    mask = scene(*range(1, len(colours)))
    for image in (painted(mask, *colours), indexed(mask, *colours)):
        with pytest.raises(DataError, match=r'#.*Which colour is the background') as error:
            read(save(image))
        assert 'a.png' in str(error.value)
        assert '#{:02x}{:02x}{:02x}'.format(*colours[0]) in str(error.value)


def test_a_white_sheet_is_a_question_and_a_white_gray_mask_none(save):
    white = np.full((H, W, 3), 255, np.uint8)
    with pytest.raises(DataError, match='Which colour is the background'):
        read(save(white))
    equal(read(save(white[..., 0]))[0], np.ones((H, W), np.uint8))


def test_more_colours_than_labels(save):
    colours = [(1 + number, 255 - number, 200) for number in range(200)]
    files = [
        save(
            np.array([BLACK, *colours[part]], np.uint8)[np.arange(101).repeat(4)][None].repeat(4, 0),
            f'{part.start}.png',
        )
        for part in (slice(0, 100), slice(100, 200))
    ]
    first, second = read(*files, size=(4, 404))
    assert (first.max(), second.min(), second.max()) == (100, 0, 200)
    more = np.array([BLACK, *((201, 1 + number, 255 - number) for number in range(60))], np.uint8)
    with pytest.raises(DataError, match='at most 254 objects, found 260 colours'):
        read(*files, save(more[np.arange(61).repeat(4)][None].repeat(4, 0), 'more.png'))


# Gray values


@pytest.mark.parametrize('labels', [(1, 2), (3, 200), (254,)])
@pytest.mark.parametrize('form', ['gray', '16 bits', 'RGB', 'RGBA', 'TIFF of real numbers'])
def test_gray_values_and_equal_channels_are_labels(save, caplog, labels, form):
    mask = scene(*labels)
    path = {
        'gray': lambda: save(mask),
        '16 bits': lambda: save(mask.astype(np.uint16)),
        'RGB': lambda: save(np.dstack([mask] * 3)),
        'RGBA': lambda: save(np.dstack([mask] * 3 + [np.full_like(mask, 255)])),
        'TIFF of real numbers': lambda: save(mask.astype(np.float32), 'a.tif'),
    }[form]()
    equal(read(path)[0], mask)
    assert not caplog.records


def test_gray_rgb_in_a_video_of_colours_is_a_colour(save):
    """A frame may show the white object alone, or the gray one."""
    colours = (BLACK, RED, WHITE, (128, 128, 128))
    frames = [scene(1), scene(2), scene(3), scene(1, 2, 3)]
    files = [save(painted(mask, *colours), f'{number}.png') for number, mask in enumerate(frames)]
    for found, mask in zip(read(*files), frames, strict=True):
        equal(found, mask)


@pytest.mark.parametrize('value', [256, 300, 60000])
def test_labels_above_255(save, value):
    with pytest.raises(DataError, match=rf'a\.png: expected whole labels from 0 to 255, found values .* to {value}'):
        read(save(scene(1).astype(np.uint16) * np.uint16(value)))


@pytest.mark.parametrize('value', [0.5, -1, np.nan])
def test_real_numbers_that_are_no_labels(save, value):
    with pytest.raises(DataError, match=r'a\.tif: expected whole labels'):
        read(save(np.where(scene(1) > 0, value, 0).astype(np.float32), 'a.tif'))


# 255


@pytest.mark.parametrize('labels', [(1, 255), (255, 7), (255, 1, 2)])
@pytest.mark.parametrize('form', ['palette', 'colours'])
def test_255_beside_others_is_void_in_palettes(save, caplog, labels, form):
    mask = scene(*labels)
    equal(read(save(indexed(mask) if form == 'palette' else PALETTE[mask]))[0], np.where(mask == 255, 0, mask))
    [line] = lines(caplog, logging.INFO)
    assert 'label 255 beside other labels is void' in line
    assert not lines(caplog, logging.WARNING)


def test_255_beside_others_in_another_frame_is_void_too(save, caplog):
    first, second = read(save(indexed(scene(3)), '0.png'), save(indexed(scene(3, 255)), '1.png'))
    equal(first, scene(3))
    equal(second, scene(3))
    first, second = read(save(indexed(scene(3)), '0.png'), save(indexed(scene(255)), '1.png'))
    assert not second.any()
    assert 'show' in lines(caplog, logging.WARNING)[0]


@pytest.mark.parametrize('labels', [(1, 255), (255, 7), (255, 1, 2)])
@pytest.mark.parametrize('channels', [1, 3])
def test_255_beside_others_is_an_object_in_gray(save, caplog, labels, channels):
    mask = scene(*labels)
    equal(read(save(np.dstack([mask] * channels).squeeze()))[0], mask)
    [line] = lines(caplog, logging.WARNING)
    assert '255 counts as an object beside the labels' in line


def test_255_in_another_gray_frame_keeps_its_label(save, caplog):
    mask = scene(2, 3)
    first, second = read(save(mask, '0.png'), save(scene(255), '1.png'))
    equal(first, mask)
    equal(second, scene(255))
    assert 'a.png' not in caplog.text
    assert '0.png and 1 more' in lines(caplog, logging.WARNING)[0]


@pytest.mark.parametrize('labels', [(255,), (255, 255)])
def test_255_alone_is_an_object(save, caplog, labels):
    mask = scene(*labels)
    equal(read(save(indexed(mask)))[0], mask)  # in a palette, 255 is the label
    equal(read(save(mask))[0], mask // 255)
    equal(read(save(np.dstack([mask] * 3)))[0], mask // 255)
    assert not caplog.records


@pytest.mark.parametrize('form', ['palette', 'colours', 'gray'])
def test_void_keeps_its_label_in_ground_truth(save, caplog, form):
    mask = scene(1, 255, 2)
    image = {'palette': indexed(mask), 'colours': PALETTE[mask], 'gray': mask}[form]
    files = [save(image, '0.png'), save(np.zeros_like(mask), '1.png')]
    masks = UserMasks([FrameMasks(frame, (path,)) for frame, path in enumerate(files)], ground_truth=True)
    equal(masks.read(0), mask)
    assert not masks.read(1).any()
    assert not UserMasks([FrameMasks(1, (files[1],))], ground_truth=True).read(1).any()
    assert not caplog.records


# Kinds together


def test_palettes_and_gray_values_are_labels_of_one_video(save):
    files = [save(indexed(scene(1, 2)), '0.png'), save(scene(2, 3), '1.png'), save(np.dstack([scene(1)] * 3), '2.png')]
    for found, mask in zip(read(*files), (scene(1, 2), scene(2, 3), scene(1)), strict=True):
        equal(found, mask)


def test_a_black_and_white_mask_beside_a_palette_of_one_object_is_this_object(save):
    for found in read(save(indexed(scene(1)), '0.png'), save(scene(255), '1.png'), save(scene(1) > 0, '2.png')):
        equal(found, scene(1))


def test_colours_that_a_palette_of_the_video_explains(save):
    files = [save(indexed(scene(1, 2), BLACK, GREEN, RED), '0.png'), save(painted(scene(1), BLACK, RED), '1.png')]
    first, second = read(*files)
    equal(first, scene(1, 2))
    equal(second, scene(2))


def test_davis_colours_beside_labels(save):
    for other in (indexed(scene(1, 2)), Image.fromarray(scene(1, 2)), Image.fromarray(scene(3))):
        assert np.unique(read(save(other, '0.png'), save(PALETTE[scene(2, 5)], '1.png'))[1]).tolist() == [0, 2, 5]


@pytest.mark.parametrize('other', ['palette', 'gray', 'one object'])
def test_colours_that_nothing_explains_beside_labels_are_refused(save, other):
    image = {'palette': indexed(scene(1, 2)), 'gray': scene(1, 2), 'one object': scene(1)}[other]
    colours = save(painted(scene(1, 2), BLACK, RED, BLUE), '1.png')
    with pytest.raises(DataError, match='which colour is which label') as error:
        read(save(image, '0.png'), colours)
    assert '0.png' in str(error.value)
    if other == 'one object':  # a single colour stands for this object
        first, second = read(save(image, '0.png'), save(painted(scene(1), BLACK, RED), '1.png'))
        equal(first, second)


# Refusals


@pytest.mark.parametrize('form', ['adaptive', 'few', 'web', 'no dithering', 'RGB', 'gray'])
@pytest.mark.parametrize('how', ['drawn', 'resized', 'JPEG'])
def test_smooth_edges_are_refused_in_palettes_too(save, form, how):
    mask = scene(1, 2)
    image = Image.fromarray(painted(mask, BLACK, (200, 30, 30), (30, 200, 30)))
    if how == 'drawn':
        image = image.reduce(2)
    elif how == 'resized':
        image = image.resize((90, 60), Image.Resampling.BICUBIC)
    else:
        stream = io.BytesIO()
        image.save(stream, 'JPEG', quality=85)
        image = Image.open(stream)
    image = {
        'adaptive': lambda: image.convert('P', palette=Image.Palette.ADAPTIVE),
        'few': lambda: image.quantize(24),
        'web': lambda: image.convert('P'),
        'no dithering': lambda: image.quantize(32, dither=Image.Dither.NONE),
        'RGB': lambda: image,
        'gray': lambda: image.convert('L'),
    }[form]()
    for suffix in ('.png', '.bmp', '.tif'):
        with pytest.raises(DataError, match='expected a mask with one exact value per object') as error:
            read(save(image, f'soft{suffix}'))
        assert f'soft{suffix}' in str(error.value)
        assert 'anti-aliasing' in str(error.value)
        assert 'DAVIS' not in str(error.value)


def test_exact_colours_are_not_blamed_on_anti_aliasing(save):
    for image in (painted(scene(1), WHITE, RED), np.full((H, W, 3), 77, np.uint8) + scene(1)[..., None] * (9, 0, 0)):
        with pytest.raises(DataError, match='background') as error:
            read(save(image.astype(np.uint8)))
        assert 'anti-aliasing' not in str(error.value)


@pytest.mark.parametrize('name', ['a.png', 'a.gif', 'a.jpg', 'a.webp'])
@pytest.mark.parametrize('mode', ['RGB', 'L', 'P'])
def test_a_photograph_is_refused(save, name, mode):
    photo = Image.open(GOLDEN / 'clip' / '00000.png').convert(mode)
    if name == 'a.jpg' and mode == 'P':
        photo = photo.convert('RGB')
    with pytest.raises(DataError, match=rf'{name}: expected a (JPEG )?mask'):
        read(save(photo, name))


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'palette'])
def test_partly_transparent_pixels_are_refused(save, mode):
    mask = scene(1)
    if mode == 'palette':
        path = save(indexed(mask, BLACK, RED), transparency=b'\0\x80')
    else:
        path = save(painted(mask, *(((0, 0, 0, 0), (*RED, 128)) if mode == 'RGBA' else ((0, 0), (255, 254)))))
    with pytest.raises(DataError, match=r'a\.png: .*partly transparent'):
        read(path)


def test_a_half_transparent_colour_that_is_not_used(save):
    mask = scene(1)
    equal(read(save(indexed(mask, BLACK, RED, GREEN), transparency=b'\xff\xff\x80'))[0], mask)


@pytest.mark.parametrize('name', ['a.gif', 'a.tif', 'a.webp', 'a.png'])
def test_several_pages_are_refused(save, name):
    pages = [Image.fromarray(painted(scene(*place), BLACK, RED)) for place in ((1,), (0, 1), (0, 0, 1))]
    path = save(pages[0], name, save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=rf'{name}: expected one picture, found 3 in one file'):
        read(path)


@pytest.mark.parametrize('suffix', ['.png', '.bmp', '.webp', '.tif', '.gif'])
@pytest.mark.parametrize('form', ['palette', 'gray', 'colours', '1 bit'])
def test_formats(save, suffix, form):
    mask = scene(1, 2)
    image = {
        'palette': lambda: indexed(mask, BLACK, (130, 20, 10), GREEN),
        'gray': lambda: Image.fromarray(mask),
        'colours': lambda: Image.fromarray(painted(mask, BLACK, (130, 20, 10), GREEN)),
        '1 bit': lambda: Image.fromarray(mask > 0),
    }[form]()
    options = {'lossless': True} if suffix == '.webp' else {}
    equal(read(save(image, f'a{suffix}', **options))[0], mask if form != '1 bit' else mask > 0)


def test_compressed_tiffs(save):
    mask = scene(1, 2)
    for compression in ('tiff_lzw', 'tiff_adobe_deflate', 'packbits'):
        equal(read(save(indexed(mask), 'a.tif', compression=compression))[0], mask)
    equal(read(save(mask > 0, 'a.tif', compression='group4'))[0], mask > 0)


def test_lossy_files(save):
    mask = scene(1, 2)
    with pytest.raises(DataError, match=r'a\.webp: .*compression'):
        read(save(painted(mask, BLACK, RED, BLUE), 'a.webp', quality=70))
    with pytest.raises(DataError, match=r'a\.jpg: expected a JPEG mask to be purely black and white, found \d+ other'):
        read(save(painted(mask, BLACK, RED, BLUE), 'a.jpg'))
    with pytest.raises(DataError, match=r'a\.jpg: .*Save the original mask as PNG'):
        read(save(mask * 100, 'a.jpg'))
    sharp = np.zeros((32, 32), np.uint8)
    sharp[8:24, 8:16] = 255
    equal(read(save(sharp, 'b.jpg', quality=95), size=(32, 32))[0], sharp // 255)
    equal(read(save(np.dstack([sharp] * 3), 'b.jpg', quality=95), size=(32, 32))[0], sharp // 255)


def test_what_is_no_image(tmp_path):
    for content in (b'', b'GIF89a', b'%PDF-1.4', b'{"shapes": []}'):
        (tmp_path / 'a.png').write_bytes(content)
        with pytest.raises(DataError, match=r'a\.png: expected an image, cannot read it .*PNG.*TIFF.*GIF'):
            read(tmp_path / 'a.png')
    with pytest.raises(DataError, match=r'none\.png: expected an image'):
        read(tmp_path / 'none.png')


# No object


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((H, W), np.uint8),
        indexed(np.zeros((H, W), np.uint8)),
        np.zeros((H, W, 4), np.uint8),
        np.zeros((H, W, 3), np.uint8),
        np.zeros((H, W), bool),
    ],
)
def test_a_video_without_an_object_is_an_error(save, image):
    with pytest.raises(DataError, match=r'shows an object, found nothing but background in .*a\.png'):
        read(save(image))
    with pytest.raises(DataError, match='shows an object'):
        read_objects([[save(image, '0.png'), save(image, '1.png')]])


def test_a_frame_without_an_object_is_a_warning(save, caplog):
    first, second = read(save(np.zeros((H, W), np.uint8), '0.png'), save(scene(4), '1.png'))
    assert not first.any()
    equal(second, scene(4))
    [line] = lines(caplog, logging.WARNING)
    assert line.endswith('0.png: shows no object')


# One file an object


def test_one_file_an_object(save, caplog):
    """Each file has a form of its own. Where masks overlap, the later file is in front."""
    left, right = scene(1), scene(0, 1)
    front = np.zeros((H, W), np.uint8)
    front[10:20, 5:40] = 1
    files = [
        save(left * np.uint8(255), 'a.png'),
        save(indexed(1 - right, WHITE, BLACK), 'b.png'),
        save(painted(front, (0, 0, 0, 0), (*BLACK, 255)), 'c.png'),
    ]
    expected = np.where(front > 0, 3, np.where(right > 0, 2, left))
    equal(read_objects([files])[0], expected)
    assert not caplog.records


def test_colours_of_an_objects_files_do_not_matter(save, caplog):
    frames = [
        [save(painted(scene(1), BLACK, RED), '0a.png'), save(indexed(scene(0, 7)), '0b.png')],
        [save(painted(scene(1), BLACK, BLUE), '1a.png'), save(scene(0, 9), '1b.png')],
        [save(scene(1), '2a.png'), save(scene(0, 255), '2b.png')],
    ]
    for found in read_objects(frames):
        equal(found, scene(1, 2))
    assert not lines(caplog, logging.INFO)


def test_an_objects_file_with_several_labels(save, caplog):
    path = save(indexed(scene(3, 5)))
    equal(read_objects([[path]])[0], scene(3, 5) > 0)
    assert 'found 2 values beside the background' in lines(caplog, logging.WARNING)[0]
    for image in (indexed(scene(3, 5)), scene(3, 5), painted(scene(1, 2), BLACK, RED, BLUE)):
        with pytest.raises(DataError, match=r'a\.png: expected a mask of object 1 alone'):
            read_objects([[save(image)]], binary=True)


def test_void_around_an_object_is_none_of_it(save):
    ring = cv2.dilate(scene(1), np.ones((5, 5), np.uint8)) * np.uint8(255)
    ring[scene(1) > 0] = 1
    equal(read_objects([[save(indexed(ring))]], binary=True)[0], scene(1))


# Reading


def test_masks_come_with_their_frames(save):
    given = [
        FrameMasks(3, (save(scene(1), '3.png'),)),
        FrameMasks(8, (save(scene(255), '8a.png'), save(scene(0, 255), '8b.png')), (5, 2)),
    ]
    masks = UserMasks(given, size_hw=(2 * H, 2 * W))
    assert list(masks.given) == [3, 8]
    assert [path.name for path in masks.files] == ['3.png', '8a.png', '8b.png']
    assert masks.read(0, (H, W)) is None
    assert masks.read(3, (2 * H, 2 * W)).shape == (2 * H, 2 * W)
    equal(masks.read(8, (H, W)), scene(5, 2))


@pytest.mark.parametrize('size', [(H, H), (W, H), (2 * H, 3 * W)])
def test_masks_that_do_not_fit_are_found_at_once(save, size):
    with pytest.raises(DataError, match=r'a\.png: expected a mask of its image'):
        UserMasks([FrameMasks(0, (save(scene(1)),))], size_hw=size)


def test_a_file_that_changes_meanwhile(save):
    for before, after in ((scene(1, 2), scene(1, 3)), (indexed(scene(1)), scene(1)), (PALETTE[scene(2)], scene(1))):
        masks = UserMasks([FrameMasks(0, (save(before),))])
        save(after)
        with pytest.raises(DataError, match=r'a\.png: .*found it changed'):
            masks.read(0, (H, W))


def test_turned_masks(save):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ('a.png', 'a.tif', 'a.webp'):
        mask = scene(1, 2)
        path = save(PALETTE[mask], name, exif=exif, **({'lossless': True} if name == 'a.webp' else {}))
        equal(read(path, size=(W, H))[0], np.rot90(mask, -1))


@pytest.mark.parametrize('labels', [(1,), (1, 2), (7, 3, 20)])
@pytest.mark.parametrize('form', ['written by us', 'gray', '16 bits', 'DAVIS colours', 'alpha'])
def test_label_maps_are_read_as_ever(save, tmp_path, labels, form):
    mask = scene(*labels)
    if form == 'written by us':
        path = tmp_path / 'a.png'
        write_mask(path, mask)
    elif form == 'alpha':
        path = save(np.dstack([PALETTE[mask], np.uint8(255) * (mask > 0)]))
    else:
        path = save({'gray': mask, '16 bits': mask.astype(np.uint16), 'DAVIS colours': PALETTE[mask]}[form])
    equal(read(path)[0], read_mask(path))


@pytest.mark.skipif(not CASES.is_dir(), reason='needs /work/shared')
def test_reported_cases_in_shared():
    two = np.unique(read_mask(CASES / 'frame-formats/m.png')).tolist()

    def labels(name):
        return np.unique(read(CASES / name, size=(96, 160))[0]).tolist()

    for name in ('palette-antialiased/mask.png', 'palette-antialiased/same_as_rgb.png'):
        with pytest.raises(DataError, match='one exact value'):
            labels(name)
    assert labels('palette-inverted/mask.png') == [0, 1]
    assert labels('palette-inverted/davis_colours_reordered.png') == two
    assert labels('own-colours/cvat.png') == two
    assert labels('own-colours/red.png') == [0, 1]
    assert labels('own-colours/ids_in_rgb.png') == two
    assert labels('void-255/DAVIS/Annotations/480p/bear/00000.png') == two
    with pytest.raises(DataError, match='shows an object'):
        labels('empty-mask/empty.png')
    assert labels('empty-mask/black_on_transparent.png') == [0, 1]
    assert labels('frame-formats/mask.tif') == [0, 1]
