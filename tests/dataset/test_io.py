import io
import logging

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from dataset.io import (
    PALETTE,
    DataError,
    fit_mask,
    image_size,
    list_frames,
    read_image,
    read_mask,
    write_mask,
)
from tests.conftest import GOLDEN


@pytest.fixture
def ellipse() -> np.ndarray:
    """Two overlapping objects, 1 and 2, with curved edges."""
    mask = np.zeros((97, 143), np.uint8)
    cv2.ellipse(mask, (60, 50), (40, 25), 20, 0, 360, 1, -1)
    cv2.ellipse(mask, (90, 40), (20, 30), 0, 0, 360, 2, -1)
    return mask


def save(array: np.ndarray, path, **options) -> str:
    Image.fromarray(array).save(path, **options)
    return path


def jpeg(array: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, 'JPEG', quality=quality)
    return np.array(Image.open(stream))


# palette


def test_palette_is_the_voc_one():
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 8: (64, 0, 0)}
    known |= {15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    for label, colour in known.items():
        assert tuple(PALETTE[label]) == colour
    assert PALETTE.dtype == np.uint8
    assert len(np.unique(PALETTE, axis=0)) == 256


# images


def test_image_modes_become_rgb(tmp_path):
    colour = np.zeros((4, 6, 3), np.uint8) + np.array([200, 100, 50], np.uint8)
    for mode in ('RGB', 'RGBA', 'P', 'LA', 'L', '1'):
        image = Image.fromarray(colour).convert(mode)
        image.save(tmp_path / f'{mode}.png')
        read = read_image(tmp_path / f'{mode}.png')
        assert read.dtype == np.uint8
        assert read.shape == (4, 6, 3)
        np.testing.assert_array_equal(read, np.array(image.convert('RGB')))
    Image.fromarray(colour).convert('CMYK').save(tmp_path / 'cmyk.jpg', quality=95)
    assert np.abs(read_image(tmp_path / 'cmyk.jpg').astype(int) - colour).max() < 12


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    grey = np.array([[0, 255, 256, 40000, 65535]], np.uint16)
    read = read_image(save(grey, tmp_path / 'grey.png'))
    np.testing.assert_array_equal(read[0], [[0] * 3, [0] * 3, [1] * 3, [156] * 3, [255] * 3])


def test_jpegs_are_read_as_pil_reads_them(tmp_path):
    with Image.open(GOLDEN / 'clip' / '00000.png') as image:
        photo = image.convert('RGB')
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, mode, options in (('a', 'RGB', {}), ('gray', 'L', {}), ('turned', 'RGB', {'exif': turned})):
        path = tmp_path / f'{name}.jpg'
        photo.convert(mode).save(path, **options)
        with Image.open(path) as image:
            expected = ImageOps.exif_transpose(image).convert('RGB')
        np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize('reduction', [2, 4, 8])
@pytest.mark.parametrize('name', ['a.jpg', 'turned.jpg', 'gray.jpg', 'a.png'])
def test_reduced_images(tmp_path, name, reduction):
    """Every format is read at 1 / reduction of its size, rounded up. The pixels are, nearly, means of blocks."""
    with Image.open(GOLDEN / 'clip' / '00000.png') as image:
        photo = image.convert('L' if name == 'gray.jpg' else 'RGB').resize((151, 99))
    exif = Image.Exif()
    if name == 'turned.jpg':
        exif[0x0112] = 6
    photo.save(tmp_path / name, exif=exif)
    full = read_image(tmp_path / name)
    assert image_size(tmp_path / name) == full.shape[:2] == ((151, 99) if name == 'turned.jpg' else (99, 151))
    expected = np.array(Image.fromarray(full).reduce(reduction)).astype(int)
    found = read_image(tmp_path / name, reduction=reduction)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 4


def test_exif_orientation_turns_image_and_mask(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    stored = np.zeros((4, 6), np.uint8)
    stored[0, 0] = 1
    Image.fromarray(PALETTE[stored]).save(tmp_path / 'image.png', exif=exif)
    Image.fromarray(stored).save(tmp_path / 'mask.png', exif=exif)
    assert read_image(tmp_path / 'image.png').shape == (6, 4, 3)
    np.testing.assert_array_equal(read_mask(tmp_path / 'mask.png'), np.rot90(stored, -1))


@pytest.mark.parametrize('name', ['a.jpg', 'a.png'])
@pytest.mark.parametrize('read', [read_image, read_mask])
def test_damaged_files_are_named(tmp_path, name, read):
    save(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for content in (whole[: len(whole) // 2], b'', b'not an image'):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=name):
        read(tmp_path / name)


# masks that are read


def test_palette_mask_keeps_every_index(tmp_path):
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(mask)
    image.putpalette(list(reversed(range(256))) * 3)
    image.save(tmp_path / 'a.png')
    np.testing.assert_array_equal(read_mask(tmp_path / 'a.png'), mask)


def test_palette_mask_with_zero_and_255_is_not_binary(tmp_path):
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 255
    write_mask(tmp_path / 'a.png', mask)
    np.testing.assert_array_equal(read_mask(tmp_path / 'a.png'), mask)


def test_binary_masks(tmp_path, ellipse):
    binary = (ellipse > 0).astype(np.uint8)
    save(binary * 255, tmp_path / 'l.png')
    save(binary.astype(bool), tmp_path / '1.png')
    save(np.repeat(binary[..., None] * 255, 3, axis=2), tmp_path / 'rgb.png')
    for name in ('l.png', '1.png', 'rgb.png'):
        np.testing.assert_array_equal(read_mask(tmp_path / name), binary)
    for value in (0, 255):
        read = read_mask(save(np.full((5, 7), value, np.uint8), tmp_path / 'a.png'))
        np.testing.assert_array_equal(read, np.full((5, 7), value // 255))


def test_grey_and_colour_masks(tmp_path, ellipse):
    for labels in ((0, 1, 2), (0, 1, 255), (0, 255, 3), (0, 7, 200), (0, 128, 255)):
        mask = np.array(labels, np.uint8)[ellipse]
        np.testing.assert_array_equal(read_mask(save(mask, tmp_path / 'l.png')), mask)
        np.testing.assert_array_equal(read_mask(save(mask.astype(np.uint16), tmp_path / '16.png')), mask)
        np.testing.assert_array_equal(read_mask(save(PALETTE[mask], tmp_path / 'rgb.png')), mask)
        rgba = np.dstack([PALETTE[mask], np.full_like(mask, 255)])
        np.testing.assert_array_equal(read_mask(save(rgba, tmp_path / 'rgba.png')), mask)


@pytest.mark.parametrize('cell', [1, 2, 3, 9])
def test_fifty_objects_in_grey(tmp_path, cell):
    mask = np.arange(51, dtype=np.uint8).reshape(3, 17).repeat(cell, 0).repeat(cell, 1)
    np.testing.assert_array_equal(read_mask(save(mask, tmp_path / 'a.png')), mask)


def test_thin_and_tiny_objects_in_grey(tmp_path, ellipse):
    mask = ellipse * 9
    mask[10, 5:90] = 4
    mask[80, 100] = 5
    cv2.line(mask, (0, 96), (142, 0), 6, 1)
    np.testing.assert_array_equal(read_mask(save(mask, tmp_path / 'a.png')), mask)


def test_transparent_pixels_are_background(tmp_path, ellipse):
    rgba = np.dstack([PALETTE[ellipse], np.full_like(ellipse, 255)])
    rgba[ellipse == 0] = (255, 255, 255, 0)
    np.testing.assert_array_equal(read_mask(save(rgba, tmp_path / 'a.png')), ellipse)


@pytest.mark.parametrize('mode', ['1', 'L', 'RGB'])
def test_pixels_of_the_transparent_value_are_background(tmp_path, mode, ellipse):
    """A black object on white, where white is transparent, has no other file than one with an object on nothing."""
    image = Image.fromarray(np.where(ellipse == 0, 255, 0).astype(np.uint8)).convert(mode)
    image.save(tmp_path / 'a.png', transparency=(255, 255, 255) if mode == 'RGB' else 255 if mode == 'L' else 1)
    assert not read_mask(tmp_path / 'a.png').any()
    image = Image.fromarray(np.where(ellipse == 0, 0, 255).astype(np.uint8)).convert(mode)
    image.save(tmp_path / 'b.png', transparency=(0, 0, 0) if mode == 'RGB' else 0)
    np.testing.assert_array_equal(read_mask(tmp_path / 'b.png'), ellipse > 0)


# masks that are refused


@pytest.mark.parametrize('resample', [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize('scale', [0.5, 0.8, 1.3, 4])
@pytest.mark.parametrize('form', ['binary', 'grey', 'colour'])
def test_interpolated_masks_are_refused(tmp_path, ellipse, form, scale, resample):
    mask = {'binary': (ellipse > 0) * np.uint8(255), 'grey': ellipse * 40, 'colour': PALETTE[ellipse]}[form]
    height, width = ellipse.shape
    image = Image.fromarray(mask).resize((round(width * scale), round(height * scale)), resample)
    image.save(tmp_path / 'soft.png')
    with pytest.raises(DataError, match=r'soft\.png.*anti-aliasing'):
        read_mask(tmp_path / 'soft.png')


def test_halved_colours_that_are_in_the_palette_are_refused(tmp_path, ellipse):
    """Averages of (128, 0, 0) and black are palette colours themselves: 96, 64 and 32 of red."""
    image = Image.fromarray(PALETTE[(ellipse > 0).astype(np.uint8)])
    image.reduce(2).save(tmp_path / 'soft.png')
    with pytest.raises(DataError, match='only along the edges'):
        read_mask(tmp_path / 'soft.png')


def test_exact_colours_outside_the_palette_are_not_blamed_on_anti_aliasing(tmp_path, ellipse):
    for colours in ([(0, 0, 0), (255, 0, 0)], [(0, 0, 0), (250, 50, 83), (52, 209, 183)]):
        mask = np.array(colours, np.uint8)[ellipse.clip(max=len(colours) - 1)]
        with pytest.raises(DataError, match=r'not in the DAVIS palette .*: which object is which') as error:
            read_mask(save(mask, tmp_path / 'a.png'))
        assert 'anti-aliasing' not in str(error.value)


def test_chequered_labels_are_refused_and_lines_are_not(tmp_path, ellipse):
    """Dithering mixes two labels in a chequered pattern. A line one pixel wide, at any angle, looks similar to it."""
    rows, columns = np.indices(ellipse.shape)
    with pytest.raises(DataError, match='chequered'):
        read_mask(save(np.where(ellipse > 0, 1 + (rows + columns) % 2, 0).astype(np.uint8), tmp_path / 'a.png'))
    for end in ((142, 96), (96, 96), (142, 10), (20, 96)):
        mask = ellipse * 9
        cv2.line(mask, (0, 0), end, 3, 1)
        cv2.line(mask, (0, 90), (90, 0), 3, 1)
        np.testing.assert_array_equal(read_mask(save(mask, tmp_path / 'a.png')), mask)


@pytest.mark.parametrize('quality', [50, 75, 90, 95, 98])
def test_jpeg_masks_are_refused(tmp_path, ellipse, quality):
    grey = jpeg((ellipse > 0) * np.uint8(255), quality)
    with pytest.raises(DataError, match=r'soft\.png.*JPEG'):
        read_mask(save(grey, tmp_path / 'soft.png'))
    with pytest.raises(DataError, match=r'soft\.jpg.*JPEG'):
        read_mask(save(ellipse * 40, tmp_path / 'soft.jpg', quality=quality))
    save(jpeg(PALETTE[ellipse], quality), tmp_path / 'soft.png')
    with pytest.raises(DataError, match='not in the DAVIS palette'):
        read_mask(tmp_path / 'soft.png')


def test_labels_in_a_jpeg_are_refused_even_if_they_look_fine(tmp_path):
    mask = np.arange(4, dtype=np.uint8).repeat(16)[None].repeat(16, 0)
    path = save(mask, tmp_path / 'a.jpg', quality=100)
    np.testing.assert_array_equal(np.array(Image.open(path)), mask)
    with pytest.raises(DataError, match=r'a\.jpg.*JPEG'):
        read_mask(path)


def test_a_jpeg_that_kept_black_and_white_is_read(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:16] = 1
    np.testing.assert_array_equal(read_mask(save(mask * 255, tmp_path / 'a.jpg', quality=95)), mask)


def test_other_refusals(tmp_path, ellipse):
    with pytest.raises(DataError, match='0 to 300'):
        read_mask(save(ellipse.astype(np.uint16) * 150, tmp_path / 'a.png'))
    red = np.zeros((8, 8, 3), np.uint8)
    red[2:6, 2:6] = (255, 0, 0)
    with pytest.raises(DataError, match='#ff0000'):
        read_mask(save(red, tmp_path / 'a.png'))
    veil = np.dstack([PALETTE[ellipse], np.full_like(ellipse, 128)])
    with pytest.raises(DataError, match='transparent'):
        read_mask(save(veil, tmp_path / 'a.png'))


# size


@pytest.mark.parametrize(
    ('mask_hw', 'image_hw'),
    [
        ((480, 853), (480, 854)),  # one pixel narrower
        ((1080, 1920), (480, 854)),  # rounding of 853.3
        ((240, 427), (480, 854)),
        ((320, 569), (480, 854)),
        ((481, 853), (480, 854)),
    ],
)
def test_a_scaled_mask_is_resized_with_a_warning(caplog, mask_hw, image_hw):
    mask = np.zeros(mask_hw, np.uint8)
    mask[: mask_hw[0] // 2, : mask_hw[1] // 2] = 5
    with caplog.at_level(logging.WARNING):
        fitted = fit_mask(mask, image_hw, 'video/00000.png')
    assert fitted.shape == image_hw
    assert set(np.unique(fitted)) == {0, 5}
    assert abs((fitted > 0).mean() - 0.25) < 0.005
    assert 'video/00000.png' in caplog.text


def test_nearest_means_pixel_centres():
    np.testing.assert_array_equal(fit_mask(np.array([[1, 2], [3, 4]], np.uint8), (1, 1), 'a'), [[4]])
    np.testing.assert_array_equal(fit_mask(np.array([[1, 2]], np.uint8), (2, 4), 'a'), [[1, 1, 2, 2], [1, 1, 2, 2]])


def test_an_equal_size_is_left_alone(caplog):
    mask = np.zeros((4, 5), np.uint8)
    assert fit_mask(mask, (4, 5), 'a.png') is mask
    assert not caplog.records


@pytest.mark.parametrize('mask_hw', [(480, 480), (854, 480), (480, 850), (240, 420), (1080, 1440)])
def test_another_aspect_ratio_is_refused(mask_hw):
    with pytest.raises(DataError, match=r'video/00000\.png.*aspect.*854 x 480'):
        fit_mask(np.zeros(mask_hw, np.uint8), (480, 854), 'video/00000.png')


# writing


def test_a_written_mask_comes_back(tmp_path):
    mask = np.random.default_rng(0).integers(0, 256, (9, 11), np.uint8)
    path = tmp_path / 'new' / 'video' / '00000.png'
    write_mask(path, mask)
    image = Image.open(path)
    assert image.mode == 'P'
    np.testing.assert_array_equal(np.array(image.getpalette()).reshape(-1, 3), PALETTE)
    np.testing.assert_array_equal(read_mask(path), mask)
    assert [p.name for p in path.parent.iterdir()] == ['00000.png']


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / 'a.png'
    path.write_text('old')

    def fail_halfway(image, temporary, **_):
        assert temporary.parent == tmp_path
        temporary.write_text('half')
        raise OSError('disk full')

    monkeypatch.setattr(Image.Image, 'save', fail_halfway)
    with pytest.raises(OSError, match='disk full'):
        write_mask(path, np.zeros((4, 5), np.uint8))
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('mask', [np.zeros((4, 5)), np.zeros((4, 5, 3), np.uint8)])
def test_only_labels_are_written(tmp_path, mask):
    with pytest.raises(ValueError, match='uint8 mask'):
        write_mask(tmp_path / 'a.png', mask)


# listing


def test_frames_are_listed_in_order(tmp_path):
    for name in ('10.jpg', '2.JPG', '1.jpeg', '003.Png', '.4.jpg', '._1.jpeg', '5.txt', '6'):
        (tmp_path / name).touch()
    (tmp_path / '7.png').mkdir()
    assert [path.name for path in list_frames(tmp_path)] == ['1.jpeg', '2.JPG', '003.Png', '10.jpg']


def test_frames_with_prefixes_are_listed_in_order(tmp_path):
    for name in ('cam2_frame1.png', 'cam1_frame10.png', 'cam1_frame9.png', 'title.png'):
        (tmp_path / name).touch()
    names = [path.stem for path in list_frames(tmp_path)]
    assert names == ['cam1_frame9', 'cam1_frame10', 'cam2_frame1', 'title']


def test_two_files_for_a_frame_are_refused(tmp_path):
    (tmp_path / '0001.jpg').touch()
    (tmp_path / '0001.png').touch()
    with pytest.raises(DataError, match=r'0001\.jpg and 0001\.png'):
        list_frames(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match='nowhere'):
        list_frames(tmp_path / 'nowhere')
    assert list_frames(tmp_path) == []
