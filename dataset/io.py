"""Reads frames and masks, and writes masks.

Everything here speaks numpy: an image is uint8 [H, W, 3] RGB, a mask uint8 [H, W] of labels (0 background).
"""

import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from util.errors import DataError, foreign_call
from util.files import atomic_path

log = logging.getLogger(__name__)

FRAME_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
MAX_NAME = 240  # bytes; file systems allow 255, and the names of our files add something to a frame's name

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF')
"""The formats that PIL may read, whatever the suffix. PIL knows 50 more; one of them would start Ghostscript."""

SHOWN = 5  # names in a message

MAX_PIXELS, MAX_SIDE = 2**27, 2**15 - 1
"""Limits of an image. A frame of 16K video has 15360 x 8640 pixels, just below 2**27, and OpenCV's remap does not take
longer sides."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of each EXIF orientation upright. ImageOps.exif_transpose would fail on unusual EXIF data."""

LYING = (5, 6, 7, 8)
"""Orientations that swap height and width."""

# The largest share of the pixels along edges that may have labels which exist only there. For 50 masks, this share was
# 0; after resizing with interpolation, blurring, or JPEG compression up to quality 90, it was 0.117 or more.
MAX_FRINGE = 0.1

CROSS = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.uint8)  # the four neighbours of a pixel


def _voc_palette() -> np.ndarray:
    """Bits 0, 1, 2 of the label are the highest bits of R, G, B; bits 3, 4, 5 are the second highest, and so on."""
    label = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= ((label >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return palette


PALETTE = _voc_palette()
"""uint8 [256, 3]: the colours of PASCAL VOC and DAVIS, made by rule and never read from a video."""


def image_size(path: str | Path, *, formats: tuple[str, ...] = FORMATS) -> tuple[int, int]:
    """Read from the file's header the size (H, W) of what ``read_image`` would return. Raises ``DataError``."""
    with _open_file(path, formats) as image:
        # For a TIFF, some versions of Pillow give the size before turning it and others the size after it.
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            width, height = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
        else:
            width, height = image.size
        return (width, height) if _orientation(image, path) in LYING else (height, width)


def read_image(path: str | Path, *, reduction: int = 1) -> np.ndarray:
    """Read a frame as uint8 [H, W, 3] RGB, upright.

    An EXIF orientation is applied, to masks as well, so that image and mask fit if they fit in a viewer (and in
    OpenCV). Grayscale, palette and CMYK become RGB, 16 bits keep their upper 8, alpha is dropped. Of an animation the
    first picture is read.

    Args:
        reduction: 1, 2, 4 or 8. The image is read at 1/``reduction`` of its size, rounded up. For a JPEG, this is
            several times as fast.

    Raises:
        DataError: the file is missing, truncated or not an image, or a TIFF of several pages or of real numbers.
    """
    if (image := _read_jpeg(path, reduction)) is not None:
        return image
    found = open_image(path)
    if found.mode == 'P' and found.palette is None:
        raise DataError(f'{path}: expected an image, found palette indices without a palette. Replace the file.')
    if found.mode == 'F':
        raise DataError(f'{path}: expected an image of 8 or 16 bits, found real numbers. Save it as PNG.')
    if found.mode.startswith('I'):  # PIL would clip 16 bits to 255 instead of scaling them
        found = Image.fromarray((np.asarray(found) >> 8).clip(0, 255).astype(np.uint8))
    found = found.convert('RGB')
    return np.array(found if reduction == 1 else found.reduce(reduction))


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask as uint8 [H, W] of labels.

    - Palette: the indices, unchanged, whatever the colours.
    - Grayscale, 8 or 16 bits: the values; if there are no others than 0 and 255: 0 and 1.
    - RGB: every colour must be one of ``PALETTE``, whose index it becomes; black and white: 0 and 1.
    - Alpha: fully transparent pixels are background.

    Raises:
        DataError: unreadable file, a label above 255, a colour outside the palette, partly transparent
            pixels, a JPEG that is not purely black and white, or values that interpolation, anti-aliasing or
            compression made: labels found only along edges between a lower and a higher one, or as specks.
    """
    image = open_image(path)
    if image.mode == 'P':
        return np.array(image)

    if 'transparency' in image.info and image.mode in ('1', 'L', 'RGB'):  # the gray value or colour of such pixels
        image = image.convert('RGBA' if image.mode == 'RGB' else 'LA')
    alpha = None
    if 'A' in image.getbands():
        alpha = np.asarray(image.getchannel('A'))
        if not np.isin(alpha, (0, 255)).all():
            raise _soft_mask(path, 'partly transparent pixels')
        image = image.convert('RGB' if len(image.getbands()) > 2 else 'L')
    if len(image.getbands()) > 1:
        values = np.array(image.convert('RGB'))
    else:
        values = np.array(image) * np.uint8(255) if image.mode == '1' else np.array(image)
    if alpha is not None:
        values[alpha == 0] = 0

    if _is_binary(values):
        return (values if values.ndim == 2 else values[..., 0]).astype(bool).astype(np.uint8)
    if image.format == 'JPEG':
        raise _soft_mask(path, 'a JPEG with values other than 0 and 255')
    labels = _labels_of_colours(values, path) if values.ndim == 3 else _labels_of_values(values, path)
    check_crisp(labels, values if values.ndim == 3 else labels, path)
    return labels


def is_black_and_white(path: str | Path) -> bool:
    """Whether a mask has the values 0 and 255 only; ``read_mask`` then gives its one object the label 1."""
    image = open_image(path)
    return image.mode == '1' or (image.mode != 'P' and _is_binary(np.asarray(image.convert('RGB'))))


def _is_binary(values: np.ndarray) -> bool:
    """Whether gray values [H, W] or RGB [H, W, 3] are black and white only."""
    return bool(np.isin(values, (0, 255)).all() and (values.ndim == 2 or (values == values[..., :1]).all()))


def fit_mask(mask: np.ndarray, size_hw: tuple[int, int], path: str | Path, pixel_aspect: float = 1) -> np.ndarray:
    """Bring a mask [h, w] to its image's size (H, W) by nearest neighbour, with a warning if that changes it.

    The sizes must be those of one picture at two scales. One pixel of difference is allowed, since sizes are rounded.

    Args:
        pixel_aspect: width of the image's pixels divided by their height. A mask of the size at which a player shows
            the image fits, too.

    Raises:
        DataError: the aspect ratios differ. ``path``, the mask's file, is only for messages.
    """
    (h, w), (H, W) = mask.shape, size_hw
    if (h, w) == (H, W):
        return mask
    check_aspect((h, w), size_hw, path, pixel_aspect)
    log.warning('%s: the mask is %d x %d, its image %d x %d; resized by nearest neighbour', path, w, h, W, H)
    return np.array(Image.fromarray(mask).resize((W, H), Image.Resampling.NEAREST))


def check_aspect(
    mask_hw: tuple[int, int], size_hw: tuple[int, int], path: str | Path, pixel_aspect: float = 1
) -> None:
    """Raise the ``DataError`` of :func:`fit_mask` if a mask of this size would not fit."""
    (h, w), (H, W) = mask_hw, size_hw
    shown = round(W * pixel_aspect)
    if not any(_is_same_picture((h, w), (H, width)) for width in (W, shown)):
        also = '' if shown == W else f', or as it is shown ({shown} x {H})'
        raise DataError(
            f"{path}: expected a mask of its image's aspect ratio ({W} x {H}){also}, found {w} x {h}. "
            'Check that mask and image belong together, and that neither was cropped or rotated.'
        )


def _is_same_picture(size_hw: tuple[int, int], other_hw: tuple[int, int]) -> bool:
    """Whether two sizes can be those of one picture at two scales; one pixel of difference is allowed."""
    (h, w), (H, W) = sorted([size_hw, other_hw], key=math.prod)
    return abs(h - w * H / W) <= 1 or abs(w - h * W / H) <= 1 or max(abs(h - H), abs(w - W)) <= 1


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write uint8 labels [H, W] as a PNG with ``PALETTE``; whole or not at all. Folders are made."""
    image = _image_of(mask)
    image.putpalette(PALETTE.tobytes())
    _write_png(path, image)


def write_binary_mask(path: str | Path, mask: np.ndarray) -> None:
    """As :func:`write_mask`, in grayscale: every label is 255."""
    _write_png(path, _image_of(mask).point(lambda label: 255 * (label > 0)))


def _image_of(mask: np.ndarray) -> Image.Image:
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f'expected a uint8 mask [H, W], got {mask.dtype} {list(mask.shape)}')
    return Image.fromarray(mask)


def _write_png(path: str | Path, image: Image.Image) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, format='PNG')


def list_frames(folder: str | Path, *, suffixes: tuple[str, ...] = FRAME_SUFFIXES) -> list[Path]:
    """The files of a folder that have one of the suffixes (any letter case), in frame order.

    Numbers within names sort as numbers, so 2.jpg comes before 10.jpg. Other files are named in one warning. Hidden
    files are ignored.

    Raises:
        DataError: the folder is missing, two files have the same stem (which one is the frame?), or a file has a name
            that no mask can have.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f'{folder}: expected a folder of frames, found none. Check the path.')
    frames: dict[str, Path] = {}
    others, folders = [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith('.'):
            continue
        if path.is_dir():
            folders.append(f'{path.name}/')
            continue
        # A broken link is kept: reading it says that the frame is missing.
        if path.suffix.lower() not in suffixes or not (path.is_file() or path.is_symlink()):
            others.append(path.name)
            continue
        if path.stem in frames:
            raise DataError(
                f'{folder}: expected one file per frame, found {frames[path.stem].name} and {path.name}. '
                'Remove one of them.'
            )
        frames[check_path(path).stem] = path
    if frames:  # in a folder without frames, its folders may be the videos
        others += folders
    if others:
        log.warning('%s: left out entries other than %s: %s', folder, ' '.join(suffixes), some(others))
    return sorted(frames.values(), key=natural_key)


def some(names: Sequence[object]) -> str:
    """The first few names or numbers, for a message; line breaks and the like in them are escaped."""
    shown = [name if name.isprintable() else repr(name) for name in map(str, names[:SHOWN])]
    return ', '.join(shown) + (f' and {len(names) - SHOWN} more' if len(names) > SHOWN else '')


def entries_of(folder: Path) -> str:
    """What a folder holds, without hidden files, for a message that something is missing."""
    names = [f'{path.name}/' if path.is_dir() else path.name for path in sorted(folder.iterdir())]
    return some([name for name in names if not name.startswith('.')]) or 'nothing'


def check_name(name: str, source: str | Path) -> str:
    """Check that the name of a video or frame from a list is not a path, since output files get this name; return it.

    Raises:
        DataError: the name could lead out of the folder, or is too long for a file. The message has ``source``, the
            file with the list.
    """
    if not name or name.startswith('.') or '/' in name or ':' in name or not _is_plain(name):
        raise DataError(f'{source}: expected the name of a video, found {name[:80]!r}')
    return name


def check_path(path: Path) -> Path:
    """Check the path of a frame's file or a video's folder, since output files get its name; return it.

    Raises:
        DataError: the name has a backslash, which separates folders on Windows, or a control character such as a line
            break, or it is too long for our files, or its bytes are not UTF-8, which an archive needs.
    """
    if not all(map(_is_plain, (path.stem, path.suffix))):
        raise DataError(
            f'{str(path)!r}: expected a name of up to {MAX_NAME} bytes in UTF-8, without backslashes and control '
            'characters, since the masks get it, too. Rename it.'
        )
    return path


def _is_plain(name: str) -> bool:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # Python reads bytes that are not UTF-8 as surrogates, which have no encoding
        return False
    return '\\' not in name and all(' ' <= character != '\x7f' for character in name) and size <= MAX_NAME


def natural_key(path: str | Path) -> tuple[list[str | int], str]:
    """A sorting key for names in which numbers count as numbers; the name itself breaks ties (1 and 01)."""
    name = Path(path).name
    parts = re.split(r'([0-9]+)', Path(path).stem)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _read_jpeg(path: str | Path, reduction: int) -> np.ndarray | None:
    """Decode an upright, undamaged RGB JPEG by OpenCV, which is nearly twice as fast as PIL. For others, ``None``."""
    import cv2  # here, so that --help does not wait for it

    with suppress(DataError), _open_file(path, formats=('JPEG',)) as header:  # PIL then says what is wrong
        if header.mode != 'RGB' or _orientation(header, path) in UPRIGHT:
            return None
        with _reading(path):
            data = np.fromfile(path, np.uint8)
        if data[-2:].tobytes() == b'\xff\xd9':
            flag = {
                1: cv2.IMREAD_COLOR,
                2: cv2.IMREAD_REDUCED_COLOR_2,
                4: cv2.IMREAD_REDUCED_COLOR_4,
                8: cv2.IMREAD_REDUCED_COLOR_8,
            }[reduction]
            with _reading(path):
                image = cv2.imdecode(data, flag | cv2.IMREAD_IGNORE_ORIENTATION)
            if image is not None:
                return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return None


def open_image(path: str | Path, *, formats: tuple[str, ...] = FORMATS, animated: bool = True) -> Image.Image:
    """Decode an image completely, upright. Of an animation, the first picture is returned, if ``animated`` allows it.

    Raises:
        DataError: it is none of these formats, is damaged or far too large, a TIFF of several pages, or an animation.
    """
    with _open_file(path, formats) as image:
        with _reading(path, formats):
            pages = getattr(image, 'n_frames', 1)
            image.verify()  # checks a PNG's checksums, which decoding ignores; damage could become labels
        if pages > 1 and (image.format == 'TIFF' or not animated):
            raise DataError(
                f'{path}: expected one picture, found {pages} in one file. Save the one to use as a file of its own.'
            )
    with _open_file(path, formats) as image:
        if image.format == 'TIFF':
            image.filename = ''  # else Pillow 12 maps the file into memory, and garbles an image that it has to turn
        with _reading(path, formats):
            image.load()
        # Pillow itself turns a TIFF, and only that.
        turn = None if image.format == 'TIFF' else UPRIGHT.get(_orientation(image, path))
        if turn is None:
            return image
        turned = image.transpose(turn)
        turned.format = image.format
        return turned


def _reading(path: str | Path, formats: tuple[str, ...] = FORMATS) -> AbstractContextManager[None]:
    """Turn any exception of the block, which calls an image library once, into a ``DataError``.

    Which exception a damaged file raises depends on its format and on where the damage is.
    """
    after = f'. Replace the file ({", ".join(formats)} are read).'
    return foreign_call(DataError, f'{path}: expected an image, cannot read it', after)


@contextmanager
def _open_file(path: str | Path, formats: tuple[str, ...] = FORMATS) -> Iterator[ImageFile.ImageFile]:
    """Open an image: its header is read and checked, and no memory is allocated for the pixels yet."""
    if not os.path.exists(path):
        raise DataError(f'{path}: expected an image, found no such file. Check the path.')
    with _reading(path, formats):
        image = Image.open(path, formats=formats)
    with image:
        width, height = image.size
        if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
            raise DataError(
                f'{path}: expected an image, cannot read it (its header says {width} x {height}; at most {MAX_PIXELS} '
                f'pixels and sides of {MAX_SIDE}). Replace the file.'
            )
        yield image


def _orientation(image: Image.Image, path: str | Path) -> int:
    with _reading(path):
        return image.getexif().get(ExifTags.Base.Orientation, 1)  # upright


def _labels_of_values(values: np.ndarray, path: str | Path) -> np.ndarray:
    """Grayscale values [H, W] of any depth -> uint8 labels."""
    labels = values.astype(np.uint8)
    if not np.array_equal(labels, values):
        raise DataError(
            f'{path}: expected whole labels from 0 to 255, found values from {values.min()} to '
            f'{values.max()}. Save the mask as an 8-bit palette or grayscale PNG.'
        )
    return labels


def _labels_of_colours(values: np.ndarray, path: str | Path) -> np.ndarray:
    """RGB [H, W, 3] -> uint8 labels, the palette indices of its colours."""
    weights = np.array([1 << 16, 1 << 8, 1])
    palette, codes = PALETTE @ weights, values @ weights
    order = np.argsort(palette)
    labels = order[np.searchsorted(palette[order], codes).clip(max=255)]
    foreign = np.unique(codes[palette[labels] != codes])
    if len(foreign):
        shown = some([f'#{code:06x}' for code in foreign])
        found = f'{len(foreign)} colours that are not in the DAVIS palette ({shown})'
        try:
            check_crisp_colours(values, path)
        except DataError as error:
            raise _soft_mask(path, found) from error
        raise DataError(
            f'{path}: expected a mask of labels, or of colours that stand for them, found {found}: which object is '
            'which? Save the labels as a palette or grayscale PNG.'
        )
    return labels.astype(np.uint8)


def check_crisp(
    labels: np.ndarray,
    values: np.ndarray,
    path: str | Path,
    *,
    name: Callable[[int], str] = str,
    kind: str = 'label',
) -> None:
    """Refuse labels that come from interpolation, compression or dithering instead of being drawn.

    A real object fills a window of 3 x 3 pixels somewhere, or is thin. Interpolation makes labels along edges, with
    values strictly between those of two neighbours. Compression makes specks; dithering makes specks or a chequered
    pattern.

    Args:
        values: [H, W] or [H, W, C], the numbers that would have been mixed.
        name: gives the name of a label in the message, and ``kind`` says what the name is, such as ``'colour'``.
    """
    import cv2

    window = np.ones((3, 3), np.uint8)
    solid = cv2.erode(labels, window) == cv2.dilate(labels, window)
    between = (cv2.erode(values, window) < values) & (values < cv2.dilate(values, window))
    between = between if between.ndim == 2 else np.any(between, axis=-1)

    pixels = np.bincount(labels.ravel(), minlength=256)
    thin = (pixels > 0) & (np.bincount(labels[solid], minlength=256) == 0)
    if not solid.any() and pixels[: int(labels.max()) + 1].all():
        return  # a tiny image without any area, labelled 0, 1, ..., k: nothing speaks against it

    fringe = thin & (2 * np.bincount(labels[between], minlength=256) > pixels)
    if pixels[fringe].sum() > MAX_FRINGE * np.count_nonzero(~solid):
        found = ', '.join(map(name, np.flatnonzero(fringe)[:3].tolist()))
        raise _soft_mask(path, f'{fringe.sum()} {kind}s only along the edges of others ({found} ...)')
    for label in np.flatnonzero(thin & (pixels >= 32)).tolist():
        inside = (labels == label).astype(np.uint8)
        specks = cv2.connectedComponents(inside)[0] - 1
        if 3 * specks > pixels[label]:
            raise _soft_mask(path, f'{kind} {name(label)} as {specks} specks of {pixels[label]} pixels together')
        beside = cv2.filter2D(inside, -1, CROSS, borderType=cv2.BORDER_CONSTANT)
        corners = cv2.filter2D(inside, -1, 1 - CROSS, borderType=cv2.BORDER_CONSTANT) - inside
        if 2 * np.count_nonzero(inside & (beside == 0) & (corners > 2)) > pixels[label]:
            raise _soft_mask(path, f'{kind} {name(label)} as a chequered pattern')


def check_crisp_colours(values: np.ndarray, path: str | Path) -> None:
    """As :func:`check_crisp`, of uint8 RGB [H, W, 3]. Black is the background."""
    codes = values.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    colours, places = np.unique(codes.ravel(), return_inverse=True)
    objects = colours[colours > 0]
    if len(objects) > 255:
        raise _soft_mask(path, f'{len(objects)} colours')
    labels = np.zeros(len(colours), np.uint8)
    labels[colours > 0] = np.arange(255, 255 - len(objects), -1)  # from 255 down, unlike the labels that people give
    names = dict(zip(labels.tolist(), (f'#{colour:06x}' for colour in colours.tolist()), strict=True))
    check_crisp(labels[places].reshape(codes.shape), values, path, name=names.__getitem__, kind='colour')


def _soft_mask(path: str | Path, found: str) -> DataError:
    """The error of a mask that is not crisp; ``found``: what shows it."""
    return DataError(
        f'{path}: expected a mask with one exact value per object, found {found}, as anti-aliasing, '
        'interpolation, dithering or JPEG compression leave behind. Save the original mask as a palette or grayscale '
        'PNG, resized by nearest neighbour if at all.'
    )
