"""Bad input, by the hundred: whatever a file or an argument holds, it works, or one of our errors names it and says
what was expected. Hypothesis draws the cases, the same ones in every run."""

import dataclasses
import functools
import io
import json
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import PIL
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFile, ImageFilter
from torch import nn

from dataset.davis import davis
from dataset.folder import folder
from dataset.io import PALETTE, DataError, fit_mask, read_image, read_mask
from dataset.sampling import Address
from dataset.sequence import Frame, Video
from dataset.static import StaticDataset, find_pairs, read_coverage
from dataset.synthetic import SyntheticDataset
from dataset.video import VideoDataset, find_videos
from dataset.youtube import youtube
from inference import InferenceCore, InputError
from model import STCN, CheckpointError, load_network
from model.checkpoint import network_from_checkpoint, read_checkpoint
from tests.tiny import TINY
from tests.trees import write, write_pair
from training.state import TrainingState

# How each EXIF orientation, by its definition, turns the stored pixels.
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.integers(1, 600) | st.sampled_from((1, 2, 3, 15, 16, 17, 599, 600))
SIZES = st.tuples(SIDES, SIDES)


def cases(number: int) -> settings:
    return settings(max_examples=number, deadline=None, derandomize=True, database=None)


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A file in a folder of its own for every case; the fixture tmp_path would be the same for all cases of a test."""
    with tempfile.TemporaryDirectory() as parent:
        yield Path(parent) / name


def attempt(
    function: Callable,
    *args: object,
    names: Sequence[object] = (),
    error: type[Exception] = DataError,
    says: str = 'expected',
) -> object:
    """What the function returns; ``None`` after an error with a name in it, by default ``args[0]``, and a reason."""
    try:
        return function(*args)
    except error as raised:
        problem = raised
    assert isinstance(problem, error)
    assert any(str(name) in str(problem) for name in names or args[:1])
    assert says in str(problem)
    return None


def encoded(image: np.ndarray | Image.Image, form: str = 'PNG', **options) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, form, **options)
    return stream.getvalue()


def palette_image(labels: np.ndarray, palette: np.ndarray = PALETTE) -> Image.Image:
    image = Image.fromarray(labels)
    image.putpalette(palette.tobytes())
    return image


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112], found[0x011A] = orientation, 72.0
    return found


def ramp(height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3]: red grows to the right, green upwards, so that each orientation looks different."""
    red = np.linspace(0, 255, width).round().astype(np.uint8)[None].repeat(height, 0)
    green = np.linspace(255, 0, height).round().astype(np.uint8)[:, None].repeat(width, 1)
    return np.dstack([red, green, np.full_like(red, 60)])


# Files as users have them


@cases(100)
@given(
    st.sampled_from(
        [
            'L .png',
            'LA .png',
            'RGB .png',
            'RGBA .PNG',
            'P .png',
            '1 .png',
            'I;16 .png',
            'L .jpg',
            'RGB .jpg',
            'CMYK .jpeg',
            'RGB progressive .JPG',
        ]
    ),
    SIZES,
    st.integers(1, 8),
)
def test_images_of_all_kinds_sizes_and_orientations(kind, size, orientation):
    mode, *progressive, suffix = kind.split()
    image = Image.fromarray(ramp(*size)).convert('L' if mode == 'I;16' else mode)
    expected = np.array(image.convert('RGB'))
    if mode == 'I;16':
        image = Image.fromarray(np.array(image, np.uint16) * 256 + 255)
    lossy = suffix.lower() != '.png'
    options = {'quality': 100, 'subsampling': 0, 'progressive': bool(progressive)} if lossy else {}
    with scratch(f'frame{suffix}') as path:
        image.save(path, exif=exif(orientation), **options)
        found = read_image(path)
    expected = SHOWN[orientation](expected)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (6 if lossy else 0)


@cases(60)
@given(SIZES, st.integers(1, 8), st.sampled_from(['upright', 'turned like the image', 'as stored']), SEEDS)
def test_a_turned_photo_and_its_mask_agree_as_in_a_viewer(size, orientation, kind, seed):
    """Whoever paints over a photo sees it upright; only a program that ignores EXIF makes a mask as it is stored."""
    stored = np.random.default_rng(seed).integers(0, 2, size, np.uint8) * 7
    with scratch('masks/photo.png') as mask:
        image = mask.parent / 'photo.jpg'
        write(image, ramp(*size), exif=exif(orientation))
        if kind == 'upright':
            write(mask, np.ascontiguousarray(SHOWN[orientation](stored)), palette=True)
        else:
            write(mask, stored, palette=True, exif=exif(orientation if kind == 'turned like the image' else 1))
        frame = Frame('photo', image, mask)
        video = Video('video', 'video', (frame,))
        shape = video.read_image(frame).shape[:2]
        found = attempt(video.read_mask, frame, shape, names=[mask], says='expected a mask of its image')
    if kind != 'as stored':
        np.testing.assert_array_equal(found, SHOWN[orientation](stored))
    elif orientation > 4 and max(size) > 2 * min(size) + 4:
        assert found is None


@st.composite
def blocks(draw) -> np.ndarray:
    """uint8 [H, W]: squares of three pixels and more with up to 60 labels, in any order and with gaps."""
    labels = draw(st.lists(st.integers(0, 255), min_size=1, max_size=60, unique=True))
    rows, columns, cell = (draw(st.integers(*limits)) for limits in ((1, 9), (1, 9), (3, 8)))
    cells = np.random.default_rng(draw(SEEDS)).choice(np.array(labels, np.uint8), (rows, columns))
    return cells.repeat(cell, 0).repeat(cell, 1)


MASKS = {
    'palette': palette_image,
    'palette of other colours': lambda labels: palette_image(labels, PALETTE[::-1]),
    'gray': Image.fromarray,
    'gray, 16 bits': lambda labels: Image.fromarray(labels.astype(np.uint16)),
    'gray and alpha': lambda labels: Image.fromarray(np.dstack([labels, np.full_like(labels, 255)])),
    'DAVIS colours': lambda labels: Image.fromarray(PALETTE[labels]),
    'DAVIS colours on a transparent background': lambda labels: Image.fromarray(
        np.dstack([np.where(labels[..., None] > 0, PALETTE[labels], 200), np.uint8(255) * (labels > 0)])
    ),
    'white on black': lambda labels: Image.fromarray(np.uint8(255) * (labels > 0)),
    'white on transparent': lambda labels: Image.fromarray(
        np.dstack([np.full((*labels.shape, 3), 255, np.uint8), np.uint8(255) * (labels > 0)])
    ),
    '1 bit': lambda labels: Image.fromarray(labels > 0),
}


@cases(120)
@given(st.sampled_from(sorted(MASKS)), blocks())
def test_masks_of_all_kinds_and_labels(kind, labels):
    with scratch('mask.png') as path:
        MASKS[kind](labels).save(path)
        found = read_mask(path)
    binary = 'white' in kind or 'bit' in kind.split() or ('gray' in kind and set(np.unique(labels)) <= {0, 255})
    np.testing.assert_array_equal(found, (labels > 0) if binary else labels)


SPOILERS = {
    'resized': lambda image, amount: image.resize(
        [max(1, round(side * amount)) for side in image.size], Image.Resampling.BILINEAR
    ),
    'sharpened and resized': lambda image, amount: image.resize(
        [max(1, round(side * amount)) for side in image.size], Image.Resampling.LANCZOS
    ),
    'blurred': lambda image, amount: image.filter(ImageFilter.GaussianBlur(amount)),
    'smooth outlines': lambda image, amount: image.reduce(2),
    'JPEG': lambda image, amount: Image.open(io.BytesIO(encoded(image, 'JPEG', quality=round(40 * amount)))),
}


@cases(120)
@given(
    st.sampled_from(sorted(SPOILERS)),
    st.sampled_from(['gray', 'DAVIS colours', 'white on black']),
    st.lists(st.integers(1, 255), min_size=1, max_size=4, unique=True),
    st.floats(0.6, 2.3).filter(lambda amount: abs(amount - 1) > 0.1),
    SEEDS,
)
def test_no_spoiled_mask_brings_phantom_objects(spoiler, kind, labels, amount, seed):
    """Refused, or read as if nothing had happened to its labels."""
    # JPEG changes whole blocks of nearly black gray levels, so that there is no edge by which this could be noticed.
    assume((spoiler, kind) != ('JPEG', 'gray') or max(labels) >= 16)
    rng = np.random.default_rng(seed)
    image = Image.new('L', (90, 70))
    for label in labels:
        x, y, a, b = *rng.integers(0, 60, 2), *rng.integers(8, 50, 2)
        ImageDraw.Draw(image).ellipse((int(x), int(y), int(x + a), int(y + b)), label)
    with scratch('mask.png') as path:
        SPOILERS[spoiler](MASKS[kind](np.array(image)), amount).save(path)
        found = attempt(read_mask, path, says='expected a mask with one exact value per object')
    if found is not None:
        assert set(np.unique(found)) <= {0, 1, *labels}


@cases(200)
@given(SIZES, SIZES, st.sampled_from(['any', 'a pixel off', 'half']))
def test_masks_of_any_other_size(image, mask, kind):
    if kind != 'any':
        mask = tuple(
            max(1, side // 2 if kind == 'half' else side + change % 3 - 1)
            for side, change in zip(image, mask, strict=True)
        )
    labels = np.arange(mask[0] * mask[1], dtype=np.uint32).reshape(mask).astype(np.uint8)
    found = attempt(fit_mask, labels, image, 'mask.png', names=['mask.png'], says=f'found {mask[1]} x {mask[0]}')
    if kind != 'any':
        assert found is not None
    if found is not None:
        assert found.shape == image
        assert set(np.unique(found)) <= set(np.unique(labels))


# Damaged files


DAMAGES = ('flipped bits', 'cut', 'inserted bytes', 'lost bytes', 'zeros', 'noise', 'empty')
DAMAGE = st.tuples(st.sampled_from(DAMAGES), SEEDS)


def damaged(data: bytes, damage: tuple[str, int]) -> bytes:
    kind, seed = damage
    rng = np.random.default_rng(seed)
    count = int(rng.choice((1, 1, 2, 8)))
    # Headers are as likely as contents.
    first, *others = rng.integers(0, min(len(data), int(rng.choice((40, 400, len(data))))), count)
    changed = bytearray(data)
    if kind == 'flipped bits':
        for place in (first, *others):
            changed[place] ^= 1 << int(rng.integers(8))
    elif kind == 'cut':
        del changed[first:]
    elif kind == 'inserted bytes':
        changed[first:first] = rng.bytes(count)
    elif kind == 'lost bytes':
        del changed[first : first + count]
    elif kind == 'zeros':  # a block that never reached the disk
        changed[first : first + 100 * count] = bytes(len(changed[first : first + 100 * count]))
    else:
        changed = rng.bytes(len(data)) if kind == 'noise' else b''
    return bytes(changed)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A file with these chunks, checksums included."""
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))
        for name, content in chunks
    )


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], 8
    while place + 12 <= len(data):
        size = struct.unpack('>I', data[place : place + 4])[0]
        found.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    return found


@functools.cache
def image_files() -> dict[str, bytes]:
    labels = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4) % 5, np.ones((9, 11), np.uint8))
    photo = ramp(27, 44)
    return {
        'RGB.jpg': encoded(photo, 'JPEG', exif=exif(6)),
        'gray.jpg': encoded(labels, 'JPEG', exif=exif(3)),
        'CMYK.jpg': encoded(Image.fromarray(photo).convert('CMYK'), 'JPEG', progressive=True),
        'RGB.png': encoded(photo, exif=exif(8)),
        'gray.png': encoded(labels),
        '16 bits.png': encoded(labels.astype(np.uint16)),
        'colours.png': encoded(MASKS['DAVIS colours on a transparent background'](labels)),
        'palette.png': encoded(palette_image(labels), transparency=0),
        'bits.png': encoded(labels > 0),
    }


@pytest.mark.filterwarnings('ignore:Corrupt EXIF data')
@cases(150)
@given(st.sampled_from(sorted(image_files())), DAMAGE, st.booleans())
def test_damaged_images_and_masks(name, damage, checksums_fit):
    whole = image_files()[name]
    content = damaged(whole, damage)
    if checksums_fit and name.endswith('.png'):
        content = png(*chunks_of(content))
    with scratch(name) as path:
        for read, ndim in ((read_image, 3), (read_mask, 2), (read_coverage, 2)):
            path.write_bytes(whole)
            original = attempt(read, path)
            path.write_bytes(content)
            found = attempt(read, path)
            if found is not None:
                assert found.dtype == np.uint8
                assert found.ndim == ndim
                assert found.size
            if name.endswith('.png') and not checksums_fit:
                # Decoded without its checksums, a file with a flipped bit could show up to 256 objects.
                assert found is None or np.array_equal(found, original)


def test_no_flipped_bit_of_a_png_changes_a_label(tmp_path):
    """Some flips pass the decoder, which does not check the checksum of what it reads last."""
    whole = image_files()['gray.png']
    path = tmp_path / 'mask.png'
    path.write_bytes(whole)
    labels = read_mask(path)
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        found = attempt(read_mask, path)
        assert found is None or np.array_equal(found, labels)


def broken_exif() -> bytes:
    """A turned image, whose resolution is no number."""
    found = exif(6).tobytes()
    rational, text = struct.pack('>HH', 0x011A, 5), struct.pack('>HH', 0x011A, 2)
    assert rational in found
    return encoded(ramp(6, 9), exif=found.replace(rational, text))


HEADER = struct.pack('>IIBBBBB', 9, 6, 8, 3, 0, 0, 0)
ODD_FILES = {
    # content, and what read_image and read_mask give: a shape, or what they say
    'photo of an odd EXIF': (broken_exif(), (9, 6, 3), 'not in the DAVIS palette'),
    'palette without colours': (
        png((b'IHDR', HEADER), (b'IDAT', zlib.compress(bytes(60))), (b'IEND', b'')),
        'without a palette',
        (6, 9),
    ),
    'no pixels': (png((b'IHDR', HEADER), (b'PLTE', bytes(6)), (b'IEND', b'')), 'cannot read it', 'cannot read it'),
    'EPS': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 6\n', 'cannot read it', 'cannot read it'),
    'GIF': (encoded(ramp(6, 9), 'GIF'), 'cannot read it', 'cannot read it'),
    'TIFF': (encoded(ramp(6, 9), 'TIFF'), (6, 9, 3), 'not in the DAVIS palette'),
    'WebP': (encoded(ramp(6, 9), 'WEBP', lossless=True), (6, 9, 3), 'not in the DAVIS palette'),
    'multi-picture': (
        encoded(ramp(6, 9), 'MPO', save_all=True, append_images=[Image.new('RGB', (9, 6))]),
        (6, 9, 3),
        'JPEG',
    ),
}


@pytest.mark.parametrize('name', ODD_FILES)
def test_odd_files(name, tmp_path):
    content, *results = ODD_FILES[name]
    path = tmp_path / 'file.png'
    path.write_bytes(content)
    for read, result in zip((read_image, read_mask), results, strict=True):
        found = attempt(read, path, says=result if isinstance(result, str) else 'expected')
        assert (None if found is None else found.shape) == (None if isinstance(result, str) else result)


@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_an_orientation_in_xmp_counts_for_all_jpegs_or_none(mode, tmp_path):
    """OpenCV, which decodes JPEGs in colour, ignores an orientation in XMP, and so does an old Pillow."""
    image = Image.fromarray(ramp(6, 9)).convert(mode)
    image.save(tmp_path / 'a.jpg', xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"></x:xmpmeta>')
    with Image.open(tmp_path / 'a.jpg') as opened:
        turned = opened.getexif().get(0x0112) == 6
    assert turned or int(PIL.__version__.partition('.')[0]) < 12
    assert read_image(tmp_path / 'a.jpg').shape == ((9, 6, 3) if turned else (6, 9, 3))


def sized(data: bytes, marker: bytes, offset: int, layout: str, *size: int) -> bytes:
    place = data.index(marker) + offset
    return data[:place] + struct.pack(layout, *size) + data[place + struct.calcsize(layout) :]


BOMBS = {
    '60000.png': png(
        (b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)), *chunks_of(encoded(ramp(6, 9)))[1:]
    ),
    '13000.png': png(
        (b'IHDR', struct.pack('>IIBBBBB', 13000, 13000, 8, 0, 0, 0, 0)), *chunks_of(encoded(ramp(6, 9)[..., 0]))[1:]
    ),
    '60000.jpg': sized(encoded(ramp(6, 9), 'JPEG'), b'\xff\xc0', 5, '>HH', 60000, 60000),
    '20000.jpg': sized(encoded(ramp(6, 9), 'JPEG'), b'\xff\xc0', 5, '>HH', 20000, 20000),
    '40000.bmp.png': sized(encoded(ramp(6, 9), 'BMP'), b'BM', 18, '<ii', 40000, 40),
    'text.png': png(
        (b'IHDR', HEADER),
        (b'zTXt', b'a\0\0' + zlib.compress(bytes(10**8))),
        *chunks_of(encoded(palette_image(np.zeros((6, 9), np.uint8))))[1:],
    ),
}


@pytest.mark.filterwarnings('ignore:Image size')
@pytest.mark.parametrize('name', BOMBS)
@pytest.mark.parametrize('read', [read_image, read_mask, read_coverage])
def test_bombs_are_refused_before_they_are_decoded(name, read, tmp_path, monkeypatch):
    def decode(*_):
        raise AssertionError('decoded')

    monkeypatch.setattr(cv2, 'imdecode', decode)
    monkeypatch.setattr(ImageFile.ImageFile, 'load', decode)
    path = tmp_path / name
    path.write_bytes(BOMBS[name])
    reason = '(pixels|text chunk|[Tt]oo [Ll]arge)'
    with pytest.raises(DataError, match=rf'{name}: expected an image, cannot read it .*{reason}'):
        read(path)


READERS = {
    'image': (read_image, DataError),
    'mask': (read_mask, DataError),
    'coverage': (read_coverage, DataError),
    'checkpoint': (read_checkpoint, CheckpointError),
    'network': (load_network, CheckpointError),
}


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('kind', ['nothing', 'a folder', 'an empty file', 'a dangling link', 'below a file'])
def test_what_is_no_file(reader, kind, tmp_path):
    read, error = READERS[reader]
    path = tmp_path / 'name.png'
    if kind == 'a folder':
        path.mkdir()
    elif kind == 'an empty file':
        path.touch()
    elif kind == 'a dangling link':
        path.symlink_to(tmp_path / 'moved.png')
    elif kind == 'below a file':
        path.touch()
        path /= 'name.png'
    with pytest.raises(error) as problem:
        read(path)
    assert str(path) in str(problem.value)


# Roots with missing, misplaced and doubled pieces


@functools.cache
def frame_file() -> bytes:
    return encoded(ramp(6, 9))


@functools.cache
def mask_file() -> bytes:
    return encoded(palette_image(np.kron(np.array([[1, 2]], np.uint8), np.ones((6, 5), np.uint8))[:, :9].copy()))


LIST = 'trainval/ImageSets/2017/val.txt'
SHOTS = 'all_frames/valid_all_frames/JPEGImages'
META = 'valid/meta.json'


def put(content: bytes, *paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def make_davis(root: Path) -> None:
    for name in ('dog', 'goat'):
        for kind, content in (('JPEGImages', frame_file()), ('Annotations', mask_file())):
            put(content, *(root / 'trainval' / kind / '480p' / name / f'{number:05d}.png' for number in range(3)))
    put(b'dog\ngoat\n', root / 'trainval' / 'ImageSets' / '2017' / 'val.txt')


def make_youtube(root: Path) -> None:
    videos = {}
    for name in ('0a1b', 'ff02'):
        put(frame_file(), *(root / SHOTS / name / f'{number:05d}.png' for number in range(4)))
        put(mask_file(), *(root / 'valid' / 'Annotations' / name / f'{number:05d}.png' for number in (0, 2)))
        videos[name] = {'objects': {'1': {'frames': ['00000', '00002']}, '2': {'frames': ['00002']}}}
    put(json.dumps({'videos': videos}).encode(), root / 'valid' / 'meta.json')


def make_folder(root: Path) -> None:
    for name in ('cat', 'dog'):
        put(frame_file(), *(root / 'JPEGImages' / name / f'{number}.png' for number in range(3)))
        put(mask_file(), root / 'Annotations' / name / '1.png')


def make_static(root: Path) -> None:
    for name in ('1', '2'):
        put(encoded(ramp(6, 9), 'JPEG'), root / 'mine' / f'{name}.jpg')
        put(mask_file(), root / 'mine' / f'{name}.png')


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def replaced_by_folder(path: Path) -> None:
    remove(path)
    path.mkdir()


def copied(source: Path, target: Path) -> None:
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


ROOTS = [
    # a reader, what happens to its root, and the names and lengths of what it finds, or what its error says
    (davis, None, {'dog': 3, 'goat': 3}),
    (davis, lambda root: remove(root / 'trainval'), 'no DAVIS 2017 val; expected .*480p'),
    (davis, lambda root: remove(root / LIST), r'val\.txt: cannot read'),
    (davis, lambda root: replaced_by_folder(root / LIST), r'val\.txt: cannot read'),
    (davis, lambda root: put(b' \n', root / LIST), r'val\.txt: lists no videos'),
    (davis, lambda root: put(b'd\xf6g\n', root / LIST), r'val\.txt: expected a text file'),
    (davis, lambda root: put(b'dog\n../dog\n', root / LIST), r'val\.txt: expected the name of a video'),
    (davis, lambda root: put(b'dog\ngoat\ncow\n', root / LIST), r'1 of the 3 videos of val\.txt are missing: cow'),
    (davis, lambda root: put(b'goat\n', root / LIST), {'goat': 3}),
    (davis, lambda root: put(b'goat\ndog\ngoat', root / LIST), {'dog': 3, 'goat': 3}),
    (davis, lambda root: put(b'\xef\xbb\xbfdog\r\ngoat\r\n', root / LIST), {'dog': 3, 'goat': 3}),
    (davis, lambda root: remove(root / 'trainval/JPEGImages/480p/dog'), r'videos of val\.txt are missing: dog'),
    (davis, lambda root: remove(root / 'trainval/JPEGImages/480p/dog/00000.png'), 'dog: annotated.*missing: 00000'),
    (davis, lambda root: remove(root / 'trainval/JPEGImages/480p/dog/00001.png'), 'dog: annotated.*missing: 00001'),
    (davis, lambda root: replaced_by_folder(root / 'trainval/JPEGImages/480p/dog/00001.png'), 'missing: 00001'),
    (davis, lambda root: remove(root / 'trainval/Annotations/480p/dog'), r'dog/00000\.png: the annotation'),
    (davis, lambda root: replaced_by_folder(root / 'trainval/Annotations/480p/dog/00000.png'), 'png: the annotation'),
    (davis, lambda root: remove(root / 'trainval/Annotations/480p/dog/00002.png'), {'dog': 3, 'goat': 3}),
    (davis, lambda root: put(b'', root / 'trainval/JPEGImages/480p/dog/00001.jpg'), r'00001\.jpg and 00001\.png'),
    (youtube, None, {'0a1b': 4, 'ff02': 4}),
    (youtube, lambda root: remove(root / SHOTS), 'JPEGImages: missing'),
    (youtube, lambda root: remove(root / 'valid/Annotations'), 'Annotations: missing'),
    (youtube, lambda root: remove(root / META), r'meta\.json: cannot read'),
    (youtube, lambda root: replaced_by_folder(root / META), r'meta\.json: cannot read'),
    (youtube, lambda root: put(b'', root / META), r'meta\.json: expected'),
    (youtube, lambda root: put(b'[' * 10**5, root / META), r'meta\.json: expected'),
    (youtube, lambda root: put(b'{"videos": {}}', root / META), r'meta\.json: lists no videos'),
    (youtube, lambda root: put(b'\xef\xbb\xbf' + (root / META).read_bytes(), root / META), {'0a1b': 4, 'ff02': 4}),
    (youtube, lambda root: put((root / META).read_bytes().replace(b'0a1b', b'ff02'), root / META), "'ff02' twice"),
    (youtube, lambda root: put((root / META).read_bytes().replace(b'"2":', b'"01":'), root / META), 'each once'),
    (youtube, lambda root: put((root / META).read_bytes().replace(b'"2":', b'"0":'), root / META), 'objects 1 to 255'),
    (youtube, lambda root: put((root / META).read_bytes().replace(b'0a1b', b'../a'), root / META), 'name of a video'),
    (youtube, lambda root: remove(root / SHOTS / '0a1b'), '0a1b: expected a folder of frames'),
    (youtube, lambda root: remove(root / SHOTS / '0a1b/00002.png'), r'0a1b: frames that meta\.json .*missing: 00002'),
    (youtube, lambda root: remove(root / SHOTS / '0a1b/00001.png'), {'0a1b': 3, 'ff02': 4}),
    (youtube, lambda root: remove(root / 'valid/Annotations/0a1b/00002.png'), {'0a1b': 4, 'ff02': 4}),
    (youtube, lambda root: copied(root / SHOTS / '0a1b', root / SHOTS / 'unlisted'), {'0a1b': 4, 'ff02': 4}),
    (folder, None, {'cat': 3, 'dog': 3}),
    (folder, remove, 'JPEGImages: missing'),
    (folder, lambda root: remove(root / 'Annotations'), 'Annotations: missing'),
    (folder, lambda root: remove(root / 'Annotations/dog'), 'dog: no masks of the frames'),
    (folder, lambda root: remove(root / 'Annotations/dog/1.png'), 'dog: no masks'),
    (folder, lambda root: remove(root / 'JPEGImages/dog/1.png'), 'dog: masks without a frame.*: 1'),
    (folder, lambda root: remove(root / 'JPEGImages/dog/2.png'), {'cat': 3, 'dog': 2}),
    (folder, lambda root: (root / 'JPEGImages/dog/3.png').symlink_to('moved.png'), {'cat': 3, 'dog': 4}),
    (folder, lambda root: replaced_by_folder(root / 'JPEGImages/dog'), 'dog: expected frames of a video'),
    (folder, lambda root: put(b'', root / 'JPEGImages/dog/1.jpeg'), r'1\.jpeg and 1\.png'),
    (folder, lambda root: put(b'', root / 'Annotations/dog/1.jpg'), r'1\.jpg and 1\.png'),
    (folder, lambda root: put(b'', root / 'JPEGImages/a.txt', root / 'JPEGImages/.DS_Store'), {'cat': 3, 'dog': 3}),
]
MAKERS = {davis: make_davis, youtube: make_youtube, folder: make_folder}


@pytest.mark.parametrize(
    ('reader', 'change', 'expected'),
    ROOTS,
    ids=[f'{reader.__name__}-{expected if isinstance(expected, str) else "works"}' for reader, _, expected in ROOTS],
)
def test_roots_with_pieces_missing_or_doubled(reader, change, expected, tmp_path):
    MAKERS[reader](tmp_path / 'root')
    if change is not None:
        change(tmp_path / 'root')
    if isinstance(expected, dict):
        assert {video.name: len(video.frames) for video in reader(tmp_path / 'root')} == expected
        return
    with pytest.raises(DataError, match=expected) as error:
        reader(tmp_path / 'root')
    assert str(tmp_path / 'root') in str(error.value)


@cases(50)
@given(DAMAGE | st.binary(max_size=30))
def test_damaged_lists_of_videos(damage):
    with scratch('root') as root:
        make_davis(root)
        put(damage if isinstance(damage, bytes) else damaged((root / LIST).read_bytes(), damage), root / LIST)
        found = attempt(davis, root, names=[root / LIST, 'videos of val.txt'], says='')
        assert found is None or {video.name for video in found} <= {'dog', 'goat'}


JUNK = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        2.5,
        10**40,
        '',
        'x',
        '00001',
        '../x',
        '\ud800',
        300 * 'x',
        [],
        ['00000'],
        [[]],
        {},
        {'frames': []},
        {'1': 1},
    ]
)


def spoiled(content: object, rng: np.random.Generator, junk: object) -> object:
    """A copy of nested dictionaries and lists in which one value, anywhere, is replaced, missing or renamed."""
    if not isinstance(content, dict | list) or not content or rng.random() < 0.15:
        return junk
    if isinstance(content, list):
        place = int(rng.integers(len(content)))
        return [*content[:place], spoiled(content[place], rng, junk), *content[place + 1 :]]
    key = list(content)[int(rng.integers(len(content)))]
    kept = {name: value for name, value in content.items() if name != key}
    change = rng.integers(6)
    if change == 0:
        return kept
    return kept | (
        {junk if isinstance(junk, str) else f'{junk}': content[key]}
        if change == 1
        else {key: spoiled(content[key], rng, junk)}
    )


@cases(120)
@given(DAMAGE | st.tuples(JUNK, SEEDS))
def test_damaged_and_odd_meta_files(change):
    with scratch('root') as root:
        make_youtube(root)
        content = (root / META).read_bytes()
        if change[0] in DAMAGES:
            content = damaged(content, change)
        else:
            content = json.dumps(spoiled(json.loads(content), np.random.default_rng(change[1]), change[0])).encode()
        put(content, root / META)
        found = attempt(youtube, root, names=[root / META, root / SHOTS, root / 'valid/Annotations'], says='')
        for video in found or ():
            assert video.name in ('0a1b', 'ff02')
            assert all(frame.mask is None or frame.mask.is_file() for frame in video.frames)


PAIRS = [
    (None, 2),
    (lambda root: remove(root / 'mine/1.png'), 1),
    (lambda root: remove(root / 'mine/1.jpg'), 1),
    (lambda root: copied(root / 'mine/1.jpg', root / 'mine/1.jpeg'), 2),
    (lambda root: copied(root / 'mine/1.png', root / 'mine/1.PNG'), 2),
    (lambda root: copied(root / 'mine', root / 'mine/deeper'), 4),
    (lambda root: put(b'', root / 'mine/notes.txt', root / 'mine/.3.jpg', root / 'mine/3.png'), 2),
    (lambda root: replaced_by_folder(root / 'mine'), 'expected image and mask pairs'),
    (remove, 'expected a folder of static images'),
    (lambda root: (remove(root), put(b'', root)), 'expected a folder of static images'),
]


@pytest.mark.parametrize(('change', 'expected'), PAIRS)
def test_static_folders_with_pieces_missing_or_doubled(change, expected, tmp_path):
    make_static(tmp_path / 'root')
    if change is not None:
        change(tmp_path / 'root')
    found = attempt(find_pairs, tmp_path / 'root', says=str(expected))
    assert (len(found) if found else expected) == expected


@cases(20)
@given(SIZES, st.sampled_from(['as it is', 'a pixel off', 'empty', 'full']), SEEDS)
def test_training_samples_of_images_of_any_size(size, kind, seed):
    with scratch('mine/1.jpg') as path:
        write(path, ramp(*size))
        mask = np.zeros([side + (kind == 'a pixel off') for side in size], np.uint8)
        mask[size[0] // 3 :, : size[1] // 2 + 1] = 255 * (kind != 'empty')
        write(path.with_suffix('.png'), np.full_like(mask, 255) if kind == 'full' else mask)
        pairs = find_pairs(path.parent)
        for dataset, objects in ((StaticDataset(pairs, size=32), 1), (SyntheticDataset(pairs, size=32), 2)):
            sample = dataset[Address(seed, 0, 0)]
            assert sample['rgb'].shape == (3, 3, 32, 32)
            assert sample['rgb'].isfinite().all()
            assert sample['masks'].shape == (3, objects, 32, 32)


@cases(40)
@given(st.lists(SIZES, min_size=3, max_size=3), st.booleans(), SEEDS)
def test_training_clips_of_frames_of_any_size(sizes, one_size, seed):
    with scratch('root') as root:
        sizes = sizes[:1] * 3 if one_size else sizes
        for number, size in enumerate(sizes):
            write(root / 'images' / 'dog' / f'{number}.jpg', ramp(*size))
            write(root / 'masks' / 'dog' / f'{number}.png', np.full(size, 3, np.uint8), palette=True)
        dataset = VideoDataset(find_videos(root / 'images', root / 'masks'), size=32)
        sample = attempt(dataset.__getitem__, Address(seed, 0, 0), names=[root / 'images' / 'dog'], says='of one size')
    assert (sample is None) == (len(set(sizes)) > 1)
    assert sample is None or sample['rgb'].shape == (3, 3, 32, 32)


@cases(60)
@given(DAMAGE, st.sampled_from(['1.jpg', '1.png']), SEEDS)
def test_a_damaged_pair_is_replaced_by_a_whole_one(damage, name, seed):
    with scratch('mine') as root:
        write_pair(root, '1', size=(24, 32))
        write_pair(root, '2', size=(24, 32))
        put(damaged((root / name).read_bytes(), damage), root / name)
        sample = StaticDataset(find_pairs(root), size=16)[Address(seed, 0, 0)]
        assert Path(sample['name']).stem in ('1', '2')
        assert sample['rgb'].isfinite().all()


# Checkpoints


@pytest.fixture(scope='module')
def network() -> STCN:
    torch.manual_seed(0)
    return STCN(TINY).eval()


def checkpoint() -> TrainingState:
    """The training state of two layers, for readers that accept any network."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(layers.parameters())
    layers(torch.ones(3)).sum().backward()
    optimizer.step()
    return TrainingState(layers, optimizer, torch.amp.GradScaler('cpu'), 7)


def content_of(state: TrainingState) -> dict:
    return {
        'iteration': state.iteration,
        'network': state.network.state_dict(),
        'optimizer': state.optimizer.state_dict(),
        'scaler': state.scaler.state_dict(),
    }


def same(content: object, other: object) -> bool:
    if isinstance(content, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(content, other)
    if isinstance(content, dict):
        return content.keys() == other.keys() and all(same(content[key], other[key]) for key in content)
    return content == other


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@cases(100)
@given(DAMAGE, st.sampled_from(['zip', 'from before PyTorch 1.6']))
def test_damaged_checkpoints(damage, form):
    content = content_of(checkpoint())
    with scratch('file.pth') as path:
        torch.save(content, path, _use_new_zipfile_serialization=form == 'zip')
        path.write_bytes(damaged(path.read_bytes(), damage))
        found = attempt(read_checkpoint, path, error=CheckpointError, says=': ')
    assert found is None or isinstance(found, dict)
    if form == 'zip':  # it has checksums, so every weight that was read is as it was saved
        assert found is None or same(found, content)


TENSORS = st.sampled_from(
    [
        torch.zeros(()),
        torch.zeros(3),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.zeros(4, 3, dtype=torch.complex64),
        torch.full((4, 3), torch.nan),
        torch.zeros(4, 3, dtype=torch.bool),
        torch.zeros(4, 3, dtype=torch.uint16),
        torch.eye(3).to_sparse(),
        torch.zeros(4, 3, device='meta'),
        torch.zeros(1).expand(4, 3),
        torch.zeros(0),
    ]
)


@pytest.mark.filterwarnings('ignore:Using a non-tuple sequence')
@cases(120)
@given(JUNK | TENSORS, SEEDS)
def test_odd_training_checkpoints(junk, seed):
    """Refused, or training goes on with it."""
    content = spoiled(content_of(checkpoint()), np.random.default_rng(seed), junk)
    if not isinstance(content, dict):
        return  # read_checkpoint has refused it
    state = checkpoint()
    state.iteration = 0
    attempt(state.restore, content, 'file.pth', names=['file.pth'], error=CheckpointError, says=': ')
    state.scaler.scale(torch.zeros(()))
    state.optimizer.step()
    assert state.iteration >= 0


@pytest.mark.filterwarnings('ignore:Initializing zero-element')
@cases(12)
@given(JUNK | TENSORS, SEEDS)
def test_odd_networks(network, junk, seed):
    rng = np.random.default_rng(seed)
    content = {'config': dataclasses.asdict(TINY), 'network': network.state_dict()}
    part = ('config', 'network')[int(rng.integers(2))]
    content[part] = spoiled(dict(content[part]), rng, junk)
    found = attempt(network_from_checkpoint, content, 'file.pth', names=['file.pth'], error=CheckpointError, says=': ')
    if found is not None:
        assert found.config.arch == 'stcn'
        assert all(value.isfinite().all() for value in found.state_dict().values())


# Frames and masks as arguments


def frame_of(seed: int, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8))


@st.composite
def annotations(draw) -> dict[int, list[int]]:
    """Which objects are annotated on which of four frames: in any order, some again, up to 50 of them."""
    number = draw(st.sampled_from((1, 3, 8, 50)))
    labels = draw(st.lists(st.integers(1, 255), min_size=number, max_size=number, unique=True))
    some = st.lists(st.sampled_from(labels), min_size=1, unique=True) | st.permutations(labels)
    return draw(st.dictionaries(st.integers(0, 3), some, min_size=1))


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        'size': st.integers(1, 40),
        'top_k': st.sampled_from((None, 1, 20)),
        'mem_every': st.sampled_from((None, 1, 2)),
        'include_last': st.booleans(),
        'kernel_sigma': st.just(7.0),
        'max_memory_frames': st.integers(1, 2),
        'object_chunk': st.integers(1, 3),
    },
)
KINDS_OF_LABELS = (torch.uint8, torch.int16, torch.int64, torch.uint16)


@cases(30)
@example((32, 24), {0: [*range(50, 0, -1)], 1: [7, 200, 3], 2: [*range(1, 51, 2)]}, {}, torch.uint8, 0)
@given(
    st.tuples(st.integers(1, 33), st.integers(1, 33)) | st.sampled_from([(1, 1), (1, 300), (300, 1), (2, 150)]),
    annotations(),
    OPTIONS,
    st.sampled_from(KINDS_OF_LABELS),
    SEEDS,
)
def test_objects_in_any_number_order_and_size(network, size, annotations, options, dtype, seed):
    if max(size) > 33:
        options = options | {'size': min(options.get('size', 2), 2)}  # the longer side grows with it
    rng = np.random.default_rng(seed)
    core = InferenceCore(network, **options)
    known = []
    for time in range(4):
        objects = annotations.get(time)
        mask = None
        if objects:
            given = torch.from_numpy(rng.choice(np.array([0, *objects]), size))
            mask = given.to(dtype)
            known += [label for label in objects if label not in known]
        prob = core.step(frame_of(seed + time, *size), mask, objects, last=time == 3)
        assert core.objects == known
        assert prob.shape == (1 + len(known), *size)
        torch.testing.assert_close(prob.sum(dim=0), torch.ones(size))
        labels = core.to_labels(prob)
        assert {0, *known} >= set(labels.unique().tolist())
        if objects and 'size' not in options:
            assert torch.equal(labels[given > 0].long(), given[given > 0])


WRONG = {
    # what is wrong, the argument that the error names, and what it says of it
    'batch': ('image', lambda a: {'image': a['image'][None]}, r'expected \[3, H, W\], found torch\.uint8 \[1, 3'),
    'channels last': ('image', lambda a: {'image': a['image'].permute(1, 2, 0)}, r'expected \[3, H, W\]'),
    'gray': ('image', lambda a: {'image': a['image'][0]}, r'expected \[3, H, W\]'),
    'RGBA': ('image', lambda a: {'image': torch.cat([a['image'], a['image'][:1]])}, r'expected \[3, H, W\]'),
    'no pixels': ('image', lambda a: {'image': a['image'][:, :0]}, r'expected \[3, H, W\]'),
    'numpy image': ('image', lambda a: {'image': a['image'].numpy()}, 'found ndarray, no tensor'),
    'integers': ('image', lambda a: {'image': a['image'].long()}, 'expected uint8 or float.*int64'),
    '0 to 255 as float': ('image', lambda a: {'image': a['image'].float()}, r'float in \[0, 1\], found values from'),
    'normalised': ('image', lambda a: {'image': a['image'] / 64 - 2}, r'float in \[0, 1\], found values from -2 to'),
    'NaN': ('image', lambda a: {'image': a['image'] * torch.nan}, r'float in \[0, 1\], found values from nan'),
    'another size': ('image', lambda a: {'image': a['image'][:, 1:]}, 'expected the size of the frames before'),
    'mask of another size': ('mask', lambda a: {'mask': a['mask'][:, 1:]}, 'expected the size of its image'),
    'mask with channel': ('mask', lambda a: {'mask': a['mask'][None]}, r'expected integer labels \[H, W\]'),
    'soft mask': ('mask', lambda a: {'mask': a['mask'] / 2}, r'expected integer labels .*torch\.float32'),
    'numpy mask': ('mask', lambda a: {'mask': a['mask'].numpy()}, 'found ndarray, no tensor'),
    'negative label': ('mask', lambda a: {'mask': -a['mask'].short()}, 'labels are 1 to 255.*found -'),
    'label 256': ('mask', lambda a: {'mask': 256 * a['mask'].long()}, 'labels are 1 to 255.*found 256'),
    'object 0': ('mask', lambda a: {'objects': [0, 1]}, 'labels are 1 to 255.*found 0'),
    'object 256': ('mask', lambda a: {'objects': [256]}, 'labels are 1 to 255.*found 256'),
    'a name': ('objects', lambda a: {'objects': ['dog']}, 'expected a list of labels'),
    'half an object': ('objects', lambda a: {'objects': [0.5]}, 'expected a list of labels'),
    'a number': ('objects', lambda a: {'objects': 1}, 'expected a list of labels'),
    'no mask': ('objects', lambda a: {'mask': None, 'objects': [1]}, 'without a mask'),
    'no image': ('image', lambda a: {'image': None}, ' is None'),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_arguments_are_named_and_change_nothing(network, name):
    argument, change, message = WRONG[name]
    mask = torch.zeros(17, 20, dtype=torch.uint8)
    mask[4:12, 5:15] = 1
    right = {'image': frame_of(1, 17, 20), 'mask': mask, 'objects': None}
    cores = [InferenceCore(network) for _ in range(2)]
    for core in cores:
        core.step(frame_of(0, 17, 20), mask * 2)
    with pytest.raises(InputError, match=f'{argument}.*{message}'):
        cores[0].step(**right | change(right))
    assert torch.equal(*(core.step(**right) for core in cores))


def test_a_bool_mask_is_object_1(network):
    core = InferenceCore(network)
    core.step(frame_of(0, 9, 9), torch.eye(9, dtype=torch.bool))
    assert str(core.objects) == '[1]'


def test_a_frame_too_long_for_its_size_is_refused(network):
    """480 x 288000 pixels would end the process."""
    with pytest.raises(
        InputError, match=r'image: \(1, 600\) resized to a shorter side of 480: the longer side exceeds'
    ):
        InferenceCore(network, size=480).step(frame_of(0, 1, 600), torch.ones(1, 600, dtype=torch.uint8))
