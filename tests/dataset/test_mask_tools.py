"""Masks as twelve annotation tools and editors write them.

Pillow, OpenCV and FFmpeg (through PyAV) write their masks in these tests. The masks of the other tools are made by
hand, after what is known of their formats; their names say so.
"""

import io
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dataset.io import PALETTE, DataError
from dataset.mask_files import FrameMasks
from dataset.user_masks import UserMasks

H, W = 30, 50


def scene(*labels: int) -> np.ndarray:
    """uint8 [H, W]: an ellipse of each label, on background."""
    mask = np.zeros((H, W), np.uint8)
    for place, label in enumerate(labels):
        cv2.ellipse(mask, (9 + 16 * place, 11 + 4 * place), (7, 9), 0, 0, 360, label, -1)
    return mask


TWO = scene(1, 2)
ONE = scene(1)


def pillow(image: np.ndarray | Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, 'PNG', **options)
    return stream.getvalue()


def opencv(image: np.ndarray, suffix: str = '.png') -> bytes:
    """RGB or gray."""
    return cv2.imencode(suffix, image[..., ::-1] if image.ndim == 3 else image)[1].tobytes()


def png8(
    indices: np.ndarray,
    colours: list[tuple[int, int, int]] | np.ndarray,
    *,
    transparency: bytes = b'',
    bits: int = 8,
    before: tuple[tuple[bytes, bytes], ...] = (),
) -> bytes:
    """A palette PNG, written chunk by chunk; ``before`` are the chunks that come before the palette."""
    height, width = indices.shape
    per_byte = 8 // bits
    padded = np.pad(indices, ((0, 0), (0, -width % per_byte))).reshape(height, -1, per_byte)
    packed = (padded << (8 - bits - bits * np.arange(per_byte)).astype(np.uint8)).sum(axis=2).astype(np.uint8)
    rows = b''.join(b'\0' + row.tobytes() for row in packed)
    chunks = [
        (b'IHDR', struct.pack('>IIBBBBB', width, height, bits, 3, 0, 0, 0)),
        *before,
        (b'PLTE', np.array(colours, np.uint8).tobytes()),
        *([(b'tRNS', transparency)] if transparency else []),
        (b'IDAT', zlib.compress(rows)),
        (b'IEND', b''),
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        for kind, data in chunks
    )


def gray_png(values: np.ndarray, bits: int) -> bytes:
    """A grayscale PNG of 1, 2 or 4 bits a pixel. Its largest value stands for 255."""
    data = png8(values, [(0, 0, 0)], bits=bits)
    header, rest = data[8:33], data[33:]
    header = header[:17] + b'\0' + header[18:21]  # colour type: gray
    palette = struct.unpack('>I', rest[:4])[0] + 12
    return data[:8] + header + struct.pack('>I', zlib.crc32(header[4:])) + rest[palette:]


def ffmpeg(labels: np.ndarray, pixels: str, colours: np.ndarray = PALETTE) -> bytes:
    """A frame through FFmpeg's PNG encoder."""
    av = pytest.importorskip('av')
    codec = av.CodecContext.create('png', 'w')
    codec.width, codec.height, codec.pix_fmt, codec.time_base = W, H, pixels, Fraction(1, 25)
    if pixels == 'pal8':
        argb = np.insert(colours, 0, 255, axis=1)
        frame = av.VideoFrame.from_ndarray((labels, argb), 'pal8')
    elif pixels.startswith('rgb'):
        frame = av.VideoFrame.from_ndarray(colours[labels], 'rgb24').reformat(format=pixels)
    else:
        frame = av.VideoFrame.from_ndarray(labels, 'gray').reformat(format=pixels)
    return b''.join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def void_ring(mask: np.ndarray) -> np.ndarray:
    """A mask whose objects are outlined by 255."""
    return np.where((mask == 0) & (cv2.dilate(mask, np.ones((3, 3), np.uint8)) > 0), np.uint8(255), mask)


# Colours that are not in the palette of DAVIS: CVAT's default ones of labels, and some of MATLAB's parula.
CVAT = np.array([(0, 0, 0), (250, 50, 83), (52, 209, 183), (255, 0, 204)], np.uint8)
PARULA = np.array([(53, 42, 135), (6, 156, 207), (249, 251, 14)], np.uint8)
OTHER_ORDER = np.array([1, 0, 2], np.uint8)

GOOD: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {
    # what the file is, and the labels that are to be found
    'LabelMe, labelme2voc, SegmentationClassPNG (by hand)': (lambda: png8(TWO, PALETTE), TWO),
    'LabelMe, labelme2voc, __ignore__ is -1 (by hand)': (lambda: png8(void_ring(TWO), PALETTE), TWO),
    'LabelMe, labelme2voc, SegmentationObjectPNG (by hand)': (lambda: png8(scene(3, 9), PALETTE), scene(3, 9)),
    'CVAT, SegmentationClass (by hand)': (lambda: opencv(CVAT[TWO]), TWO),
    'CVAT, SegmentationClass, one label of two (by hand)': (lambda: opencv(CVAT[2 * ONE]), ONE),
    'CVAT, SegmentationObject (by hand)': (lambda: opencv(PALETTE[TWO]), TWO),
    'Label Studio, brush (by hand)': (lambda: pillow(255 * ONE), ONE),
    'Label Studio, brush, alpha (by hand)': (
        lambda: pillow(np.dstack([ONE * np.uint8(90)] * 3 + [255 * ONE])),
        90 * ONE,
    ),
    'Label Studio, brush, NumPy labels (by hand)': (lambda: pillow(TWO), TWO),
    'Supervisely, masks_machine (by hand)': (lambda: opencv(np.dstack([TWO] * 3)), TWO),
    'Supervisely, masks_human (by hand)': (lambda: opencv(CVAT[scene(3, 1)]), scene(1, 2)),
    'Supervisely, bitmap of an object (by hand)': (lambda: pillow(np.dstack([255 * ONE] * 4)), ONE),
    'Roboflow, semantic segmentation masks (by hand)': (lambda: pillow(scene(1, 3)), scene(1, 3)),
    'Roboflow, one class (by hand)': (lambda: pillow(scene(1)), ONE),
    'Roboflow, palette of VOC (by hand)': (lambda: png8(TWO, PALETTE[:3], bits=2), TWO),
    'GIMP, indexed (by hand)': (lambda: png8(1 - ONE, [(255, 255, 255), (0, 0, 0)], bits=1, before=GIMP), ONE),
    'GIMP, indexed, three colours (by hand)': (
        lambda: png8(OTHER_ORDER[TWO], [(255, 0, 0), (0, 0, 0), (0, 0, 255)], bits=2, before=GIMP),
        TWO,
    ),
    'GIMP, indexed with alpha (by hand)': (
        lambda: png8(TWO, [(255, 255, 255), (255, 0, 0), (0, 0, 0)], transparency=b'\0', bits=2, before=GIMP),
        TWO,
    ),
    'Photoshop, PNG-8 (by hand)': (lambda: png8(1 - ONE, [(255, 255, 255), (0, 0, 0)], bits=1), ONE),
    'Photoshop, PNG-8, transparency last (by hand)': (
        lambda: png8(
            np.array([2, 0, 1], np.uint8)[TWO],
            [(255, 0, 0), (0, 0, 0), (255, 255, 255)],
            transparency=b'\xff\xff\0',
            bits=2,
        ),
        ONE,  # black is background beside red
    ),
    'Photoshop, PNG-8, matte of 256 colours (by hand)': (
        lambda: png8(TWO, [*CVAT[:3], *253 * [(0, 0, 0)]]),
        TWO,
    ),
    'Pillow, quantize of black and white': (
        lambda: pillow(Image.fromarray(np.dstack([255 * ONE] * 3)).quantize(2)),
        ONE,
    ),
    'Pillow, quantize of DAVIS colours': (lambda: pillow(Image.fromarray(PALETTE[scene(1, 2, 4)]).quantize(4)), None),
    'Pillow, convert to 1 bit': (lambda: pillow(Image.fromarray(255 * ONE).convert('1')), ONE),
    'Pillow, convert to a palette of colours that fit': (
        lambda: pillow(Image.fromarray(CVAT[TWO]).convert('P', palette=Image.Palette.ADAPTIVE, colors=3)),
        None,
    ),
    'OpenCV, black and white': (lambda: opencv(255 * ONE), ONE),
    'OpenCV, labels': (lambda: opencv(TWO), TWO),
    'OpenCV, 16 bits': (lambda: opencv(TWO.astype(np.uint16)), TWO),
    'OpenCV, colours': (lambda: opencv(CVAT[TWO]), TWO),
    'OpenCV, BMP': (lambda: opencv(255 * ONE, '.bmp'), ONE),
    'OpenCV, TIFF': (lambda: opencv(TWO, '.tiff'), TWO),
    'MATLAB, imwrite of a logical array (by hand)': (lambda: gray_png(ONE, 1), ONE),
    'MATLAB, imwrite(X, map) with black first (by hand)': (lambda: png8(TWO, [(0, 0, 0), *PARULA]), TWO),
    'MATLAB, imwrite(X, gray(256)) (by hand)': (lambda: png8(TWO, [(i, i, i) for i in range(256)]), TWO),
    'ImageMagick, -threshold 50% (by hand)': (lambda: gray_png(ONE, 1), ONE),
    'ImageMagick, PNG8 (by hand)': (lambda: png8(1 - ONE, [(255, 255, 255), (0, 0, 0)], before=GAMMA), ONE),
    'ImageMagick, PNG8 of three colours (by hand)': (
        lambda: png8(np.array([2, 1, 0], np.uint8)[TWO], [(0, 0, 255), (255, 0, 0), (0, 0, 0)], before=GAMMA),
        TWO,
    ),
    'ImageMagick, black and white of 16 bits (by hand)': (lambda: pillow(ONE.astype(np.uint16) * 65535), ONE),
    'ImageMagick, two gray levels of 2 bits (by hand)': (lambda: gray_png(TWO, 2), 85 * TWO),
    'FFmpeg, pal8': (lambda: ffmpeg(TWO, 'pal8'), TWO),
    'FFmpeg, pal8 in another order': (
        lambda: ffmpeg(OTHER_ORDER[TWO], 'pal8', PALETTE[[1, 0, 2, *range(3, 256)]]),
        TWO,
    ),
    'FFmpeg, rgb24': (lambda: ffmpeg(TWO, 'rgb24', CVAT), TWO),
    'FFmpeg, rgba': (lambda: ffmpeg(TWO, 'rgba'), TWO),
    'FFmpeg, gray': (lambda: ffmpeg(TWO, 'gray'), TWO),
    'FFmpeg, monob': (lambda: ffmpeg(255 * ONE, 'monob'), ONE),
}
GIMP = ((b'bKGD', b'\0'), (b'pHYs', struct.pack('>IIB', 11811, 11811, 1)), (b'tIME', bytes((7, 232, 1, 1, 0, 0, 0))))
GAMMA = ((b'gAMA', struct.pack('>I', 45455)), (b'bKGD', b'\0'))

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    'LabelMe, a palette scaled with interpolation (by hand)': (
        lambda: pillow(Image.fromarray(PALETTE[TWO]).resize((80, 48), Image.Resampling.BICUBIC).quantize(32)),
        'one exact value',
    ),
    'CVAT, saved as JPEG (by hand)': (lambda: opencv(CVAT[TWO], '.jpg'), 'JPEG mask to be purely black and white'),
    'Label Studio, a soft brush (by hand)': (
        lambda: pillow(cv2.GaussianBlur(255 * ONE, (5, 5), 0)),
        'one exact value',
    ),
    'Label Studio, a soft brush in alpha (by hand)': (
        lambda: pillow(np.dstack([np.full((H, W, 3), 255, np.uint8), cv2.GaussianBlur(255 * ONE, (5, 5), 0)])),
        'partly transparent',
    ),
    'GIMP, smooth edges (by hand)': (
        lambda: pillow(Image.fromarray(CVAT[TWO]).resize((100, 60), Image.Resampling.BILINEAR).quantize(255)),
        'one exact value',
    ),
    'Photoshop, PNG-8 with a matte (by hand)': (
        lambda: png8(TWO, CVAT[:3], transparency=b'\xff\x80\xff'),
        'partly transparent',
    ),
    'Photoshop, no background (by hand)': (
        lambda: png8(ONE, [(255, 255, 255), (255, 0, 0)], bits=1),
        'Which colour is',
    ),
    'Pillow, dithered colours of CVAT': (
        lambda: pillow(Image.fromarray(CVAT[TWO.repeat(3, 0).repeat(3, 1)]).convert('P')),
        'specks',
    ),
    'Pillow, dithered colours of DAVIS': (lambda: pillow(Image.fromarray(PALETTE[TWO]).convert('P')), 'chequered'),
    'Pillow, animation': (
        lambda: pillow(ONE, save_all=True, append_images=[Image.fromarray(TWO), Image.fromarray(ONE)]),
        'one picture',
    ),
    'OpenCV, resize': (lambda: opencv(cv2.resize(120 * TWO, (80, 48))), 'one exact value'),
    'OpenCV, 16 bits of large ids': (lambda: opencv(TWO.astype(np.uint16) * 400), 'whole labels from 0 to 255'),
    'MATLAB, imwrite(X, parula) (by hand)': (lambda: png8(TWO, PARULA), 'Which colour is the background'),
    'ImageMagick, -blur (by hand)': (lambda: pillow(cv2.blur(255 * ONE, (3, 3))), 'one exact value'),
    'FFmpeg, from a compressed video': (
        lambda: ffmpeg(cv2.imdecode(cv2.imencode('.jpg', 255 * ONE)[1], cv2.IMREAD_GRAYSCALE), 'gray'),
        'one exact value',
    ),
}


def read(path: Path, content: bytes) -> np.ndarray:
    path.write_bytes(content)
    return UserMasks([FrameMasks(0, (path,))]).read(0, (H, W))


@pytest.mark.parametrize('name', GOOD)
def test_masks_of_a_tool(tmp_path, name):
    make, expected = GOOD[name]
    content = make()
    assert len(content) < 6000
    found = read(tmp_path / 'mask.png', content)
    if expected is None:  # whichever order the tool chose
        assert found[0, 0] == 0
        expected = scene(1, 2, 4) if 'DAVIS' in name else TWO
        pairs = np.unique(np.stack([found, expected]).reshape(2, -1), axis=1)
        assert pairs.shape[1] == len(np.unique(expected)) == len(np.unique(found))
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('name', REFUSED)
def test_masks_of_a_tool_that_are_refused(tmp_path, name):
    make, message = REFUSED[name]
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path / 'mask.png', make())
    assert str(error.value).startswith(f'{tmp_path}/mask.png: expected')


def test_files_of_one_video_as_pillow_quantizes_each(tmp_path):
    """Pillow gives every frame a palette of its own: the colours that the frame shows, the most used one first."""
    frames = [scene(1), scene(2, 1), scene(0, 2), scene(4, 2)]
    files = []
    for number, mask in enumerate(frames):
        files.append(tmp_path / f'{number}.png')
        files[-1].write_bytes(pillow(Image.fromarray(PALETTE[mask]).quantize(4)))
    masks = UserMasks([FrameMasks(number, (path,)) for number, path in enumerate(files)])
    for number, mask in enumerate(frames):
        np.testing.assert_array_equal(masks.read(number, (H, W)), mask)


def test_files_an_object_as_label_studio_exports_them(tmp_path):
    """Each object has a gray file with 255 inside, made by hand and named as in an export of Label Studio."""
    files = []
    for name, mask in (('cat', scene(1)), ('dog', scene(0, 1))):
        files.append(tmp_path / f'task-7-annotation-1-by-1-tag-{name}-0.png')
        files[-1].write_bytes(pillow(255 * mask))
    masks = UserMasks([FrameMasks(0, tuple(files), (1, 2))])
    np.testing.assert_array_equal(masks.read(0, (H, W)), TWO)


def test_all_twelve_tools_are_here():
    tools = {name.split(',')[0] for name in GOOD}
    assert len(tools) == 12
    for tool in tools:
        assert sum(name.startswith(tool) for name in (*GOOD, *REFUSED)) >= 3
