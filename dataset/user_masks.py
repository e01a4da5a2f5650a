"""Reads masks that a user brings, written by any tool. Which pixels are which object is decided for a whole video.

The masks of benchmarks are label maps, which :func:`dataset.io.read_mask` takes as they are. The masks of a user may
have a palette in any order, or the colours of some tool, or there may be one file for each object. One file alone
often does not tell which of these it is. So :class:`UserMasks` looks at all files of a video first and refuses those
whose meaning is not certain, before any work is done. Later it reads each file when its frame comes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Generic

import numpy as np
from PIL import Image

from dataset.io import (
    FORMATS,
    PALETTE,
    DataError,
    check_aspect,
    check_crisp,
    check_crisp_colours,
    fit_mask,
    open_image,
    some,
)
from dataset.mask_files import MAX_LABEL, FrameMasks, Key
from util.metrics import VOID

log = logging.getLogger(__name__)

MASK_FORMATS = (*FORMATS, 'GIF')

# Colours are numbers, 0xRRGGBB.
BLACK, WHITE = 0x000000, 0xFFFFFF
CLEAR = -1  # stands for fully transparent, among colours or gray values
GRAY = 0x010101  # multiplied by a gray value, it gives the colour
DAVIS_LABELS = {(int(r) << 16) + (int(g) << 8) + int(b): label for label, (r, g, b) in enumerate(PALETTE)}


class UserMasks(Generic[Key]):
    """All masks of a video that a user brings. Of each file only the colours that are in it are kept in memory.

    Args:
        given: the masks of each frame that has some, in frame order.
        size_hw: (H, W) of the frames, if it is known; masks that do not fit are then refused at once.
        pixel_aspect: width of a frame's pixel divided by its height. Masks may have the size at which a player shows
            the frames.
        name: of the video, for messages; by default that of the first file.
        ground_truth: whether the masks are for scoring. Then label 255 beside other labels, which is void, is kept,
            and the masks need not show an object.

    Attributes:
        given: by frame, its masks.
        objects: by frame, the labels that its masks show.

    Raises:
        DataError: a file cannot be read, has no safe meaning, or does not fit; or none of them shows an object.
    """

    def __init__(
        self,
        given: Sequence[FrameMasks[Key]],
        *,
        size_hw: tuple[int, int] | None = None,
        pixel_aspect: float = 1,
        name: str = '',
        ground_truth: bool = False,
    ):
        self.given: dict[Key, FrameMasks[Key]] = {each.frame: each for each in given}
        self.pixel_aspect = pixel_aspect
        self.objects: dict[Key, list[int]] = {}
        seen: dict[Path, _Picture] = {}
        files_of: dict[int | None, list[Path]] = {}  # object -> its files; None: files with the labels of all
        for path, label in [pair for each in given for pair in each.pairs]:
            files_of.setdefault(label, []).append(path)
            if path not in seen:
                picture = _decode(path)
                if size_hw is not None:
                    check_aspect(picture.codes.shape, size_hw, path, pixel_aspect)
                _check_picture(picture)
                seen[path] = replace(picture, codes=_first_seen(picture.codes))
        self._readings: dict[int | None, _Reading] = {}
        for label, files in files_of.items():
            one = label is not None
            title = name or (f'{files[0]} and {len(files) - 1} more' if len(files) > 1 else str(files[0]))
            pictures = [seen[path] for path in files]
            self._readings[label] = _judge(pictures, title, one_object=one, keep_void=ground_truth and not one)
        self._find_objects(seen, name, may_be_empty=ground_truth)

    @property
    def files(self) -> list[Path]:
        return [path for each in self.given.values() for path in each.files]

    def annotated(self, frame: Key) -> tuple[int, ...] | None:
        """The objects that the masks of a frame annotate; ``None``: those that occur in them.

        In the folders of single objects, a black file is no annotation, so that there may be none.
        """
        each = self.given[frame]
        return tuple(self.objects[frame]) if each.binary else each.objects

    def read(self, frame: Key, size_hw: tuple[int, int] | None = None) -> np.ndarray | None:
        """The labels of a frame, uint8 at its image's size [H, W]; ``None`` where it has no mask.

        Args:
            size_hw: (H, W); by default that of the mask.

        Raises:
            DataError: a file was changed since it was judged, or does not fit.
        """
        each = self.given.get(frame)
        if each is None:
            return None
        labels = None
        for path, label in each.pairs:
            mask = self._readings[label].labels(_decode(path))
            size_hw = size_hw or mask.shape
            mask = fit_mask(mask, size_hw, path, self.pixel_aspect)
            if label is None:
                return mask
            labels = np.zeros(size_hw, np.uint8) if labels is None else labels
            labels[mask > 0] = label
        return labels

    def _find_objects(self, seen: dict[Path, '_Picture'], name: str, *, may_be_empty: bool) -> None:
        """Find the objects of each frame; report masks that show none, and masks of one object that show several."""
        empty = []
        for each in self.given.values():
            objects: list[int] = []
            self.objects[each.frame] = objects
            for path, label in each.pairs:
                found = sorted({*self._readings[label].labels(seen[path]).tolist()} - {0})
                if not found:
                    empty.append(str(path))
                elif label is None:
                    objects += found
                else:
                    objects.append(label)
                if label is None or len(found) < 2:
                    continue
                several = f'{path}: expected a mask of object {label} alone, found {len(found)} values beside'
                if each.binary:
                    raise DataError(f'{several} the background. Does this folder hold the masks of one object?')
                log.warning('%s the background; all of them are object %d', several, label)
        if may_be_empty:
            return
        title = f'{name}: ' if name else ''
        if not any(self.objects.values()):
            raise DataError(
                f'{title}expected a mask that shows an object, found nothing but background in {some(empty)}. '
                'Black and fully transparent pixels are background.'
            )
        if empty:
            log.warning('%s%s: shows no object' if len(empty) == 1 else '%s%s: show no object', title, some(empty))


class _Kind(Enum):
    """What a file stores for each pixel, or what its pixels are converted to before they get labels."""

    INDEX = 'index of a palette'
    VALUE = 'gray value'
    COLOUR = 'colour'


@dataclass(frozen=True, eq=False)
class _Picture:
    """A decoded file. Of a file that is not needed at the moment, only the codes that occur in it are kept."""

    path: Path
    kind: _Kind
    codes: np.ndarray
    """int32 values of this kind, or CLEAR: [H, W] of all pixels, or [N] without repetition, by first appearance."""
    palette: np.ndarray  # int32 [256]: the colours of a palette, or CLEAR; empty for the other kinds
    lossy: bool

    def colours(self) -> np.ndarray:
        """What a viewer shows: int32 colours or CLEAR, of the shape of ``codes``."""
        if self.kind is _Kind.INDEX:
            return self.palette[self.codes]
        return np.where(self.codes == CLEAR, CLEAR, self.codes * GRAY) if self.kind is _Kind.VALUE else self.codes

    def codes_as(self, kind: _Kind) -> np.ndarray:
        """The codes converted to a kind, by the colour that a viewer shows. The gray value of a colour is its blue."""
        if kind is self.kind:
            return self.codes
        colours = self.colours()
        return colours if kind is _Kind.COLOUR else np.where(colours == CLEAR, CLEAR, colours & 255)

    def shown(self) -> list[int]:
        """The colours, and CLEAR, by first appearance."""
        return list(dict.fromkeys(self.colours().tolist()))


@dataclass(frozen=True)
class _Reading:
    """How all files of a video, or all files of one object, are read."""

    read_as: dict[_Kind, _Kind]  # kind of a file -> the kind that its codes are converted to
    labels_of: dict[_Kind, dict[int, int]]  # for each kind that codes are converted to: code -> label

    def labels(self, picture: _Picture) -> np.ndarray:
        """uint8 labels of the shape of the picture's codes."""
        kind = self.read_as[picture.kind]
        return _translate(picture.codes_as(kind), self.labels_of[kind], picture.path)


def _judge(files: list[_Picture], name: str, *, one_object: bool, keep_void: bool) -> _Reading:
    """Decide how the files of a video, given in frame order, are read.

    Args:
        one_object: whether the files show a single object: all that is not background.
        keep_void: whether label 255 beside other labels is kept; else it becomes background.
    """
    why_no_labels = _why_no_labels([each for each in files if each.kind is _Kind.INDEX])
    others = [each for each in files if each.kind is not _Kind.INDEX or why_no_labels]
    pictures = [each for each in others if each.kind is not _Kind.VALUE]
    black_counts = _black_is_an_object(others)
    coloured = black_counts or any(colour % GRAY for each in pictures for colour in each.shown() if colour != CLEAR)
    for each in pictures:
        _check_background(each, why_no_labels, coloured=coloured)
    if why_no_labels and not one_object:
        log.info('%s: the colours of the palettes count, not the indices: %s', name, why_no_labels)
    shown_as = _Kind.COLOUR if coloured else _Kind.VALUE
    read_as = {
        _Kind.INDEX: shown_as if why_no_labels else _Kind.INDEX,
        _Kind.VALUE: _Kind.COLOUR if black_counts else _Kind.VALUE,
        _Kind.COLOUR: shown_as,
    }

    indices, values, colours = (
        _in_order([each.codes_as(kind) for each in files if read_as[each.kind] is kind]) for kind in _Kind
    )
    of_index = {index: index for index in indices}
    of_value = {value: max(value, 0) for value in values}
    of_colour = {CLEAR: 0} if black_counts else {CLEAR: 0, BLACK: 0}
    colours = [colour for colour in colours if colour not in of_colour]
    if one_object:
        of_colour |= _davis_labels(colours) or {c: min(n, VOID - 1) for n, c in enumerate(colours, 1)}
    elif colours:
        numbered = {*indices, *values} - {0, CLEAR}
        of_colour |= _label_colours(colours, name, numbered, _labels_of_colours(files) if of_index else {})

    labels = {*of_index.values(), *of_value.values(), *of_colour.values()} - {0}
    rest = sorted(labels - {VOID})
    if set(values) - {0, CLEAR} == {VOID} and VOID not in indices and rest in ([], [1]):
        of_value[VOID] = 1  # black and white
    elif VOID in values and rest and not keep_void:
        log.warning(
            '%s: the value 255 counts as an object beside the labels %s, since the mask is grayscale. Where it marks '
            'pixels that belong to nothing, make them 0',
            name,
            some([str(label) for label in rest]),
        )
    if rest and VOID in {*of_index.values(), *of_colour.values()} and not keep_void:
        log.info('%s: label 255 beside other labels is void, as in VOC: background', name)
        of_index = {index: label % VOID for index, label in of_index.items()}
        of_colour = {colour: label % VOID for colour, label in of_colour.items()}
    return _Reading(read_as, {_Kind.INDEX: of_index, _Kind.VALUE: of_value, _Kind.COLOUR: of_colour})


def _why_no_labels(palettes: list[_Picture]) -> str:
    """The reason why the indices of these palettes cannot be labels; empty if they can."""
    shown: dict[int, tuple[int, Path]] = {}
    for each in palettes:
        if each.palette[0] not in (BLACK, CLEAR):
            return f'index 0 of {each.path} is {_hex(each.palette[0])}, neither black nor transparent'
        for index in each.codes.tolist():
            colour = int(each.palette[index])
            if not index:
                continue
            if colour == CLEAR:
                return f'index {index} of {each.path} is transparent'
            first, where = shown.setdefault(index, (colour, each.path))
            if colour != first:
                return f'index {index} is {_hex(first)} in {where} and {_hex(colour)} in {each.path}'
    return ''


def _black_is_an_object(files: list[_Picture]) -> bool:
    """Whether black is an object: every file that has black shows nothing but black on transparent."""
    with_black = [shown for shown in map(_Picture.shown, files) if BLACK in shown]
    return bool(with_black) and all(set(shown) == {BLACK, CLEAR} for shown in with_black)


def _check_background(picture: _Picture, why_no_labels: str, *, coloured: bool) -> None:
    """Refuse a picture that has neither black nor transparent pixels, since nothing tells its background.

    An RGB picture with gray values is an exception: the values are labels, and objects may cover the whole frame. A
    picture that is white all over is refused nevertheless.
    """
    shown = picture.shown()
    labels = picture.kind is _Kind.COLOUR and not coloured and shown != [WHITE]
    if labels or BLACK in shown or CLEAR in shown:
        return
    palette = f' (the colours count, not the indices: {why_no_labels})' if picture.kind is _Kind.INDEX else ''
    raise DataError(
        f'{picture.path}: expected black or transparent pixels, the background; found {_some_colours(shown)} alone'
        f'{palette}. Which colour is the background? Make it black or transparent.'
    )


def _label_colours(colours: list[int], name: str, numbered: set[int], known: dict[int, int]) -> dict[int, int]:
    """The labels of objects that differ by colour, from all files of a video, in order.

    Args:
        numbered: labels in other files of the video, which have values or indices.
        known: the label of each colour in the palettes of these files.
    """
    davis = _davis_labels(colours)
    if numbered and set(colours) <= set(known):
        return {colour: known[colour] for colour in colours}
    if davis and all(DAVIS_LABELS.get(colour) == label for colour, label in known.items()):
        return davis
    if numbered and (len(colours) > 1 or not (numbered <= {1} or numbered == {VOID})):
        raise DataError(
            f'{name}: expected masks of one kind, found labels in some files and colours of objects in others '
            f'({_some_colours(colours)}): which colour is which label? Save all masks of the video in one way.'
        )
    if len(colours) >= VOID:
        raise DataError(f'{name}: expected at most {VOID - 1} objects, found {len(colours)} colours in the masks')
    labels = {colour: label for label, colour in enumerate(colours, 1)}
    log.info(
        '%s: the masks have these colours: %s', name, ', '.join(f'{_hex(c)} is object {labels[c]}' for c in labels)
    )
    return labels


def _davis_labels(colours: list[int]) -> dict[int, int] | None:
    """The labels of colours in DAVIS and VOC, if all of them are colours of objects there; else ``None``."""
    labels = {colour: label for colour in colours if (label := DAVIS_LABELS.get(colour))}
    return labels if labels.keys() == set(colours) else None


def _labels_of_colours(files: list[_Picture]) -> dict[int, int]:
    """The label of each colour in the palettes of the files; colours that stand for several labels are left out."""
    pairs = {
        (int(each.palette[index]), index)
        for each in files
        if each.kind is _Kind.INDEX
        for index in each.codes.tolist()
        if index
    }
    colours = [colour for colour, _ in pairs]
    return {colour: index for colour, index in pairs if colours.count(colour) == 1}


def _check_picture(picture: _Picture) -> None:
    """Refuse photographs, and values that come from interpolation, anti-aliasing or compression."""
    seen = replace(picture, codes=_first_seen(picture.codes))
    if picture.lossy and (others := set(seen.shown()) - {BLACK, WHITE}):
        raise DataError(
            f'{picture.path}: expected a JPEG mask to be purely black and white, found {len(others)} other colours, '
            'which its compression makes. Save the original mask as PNG.'
        )
    if len(seen.codes) <= 2:
        return  # with two values, none lies between others
    if picture.kind is _Kind.VALUE:
        values = picture.codes.clip(min=0).astype(np.uint8)
        check_crisp(values, values, picture.path)
        return
    colours = picture.colours()
    values = np.stack([colours.clip(min=0) >> bits & 255 for bits in (16, 8, 0)], axis=-1).astype(np.uint8)
    if picture.kind is _Kind.INDEX:
        indices = picture.codes.astype(np.uint8)
        check_crisp(indices, values, picture.path, name=lambda index: _hex(picture.palette[index]), kind='colour')
        return
    check_crisp_colours(values, picture.path)


def _decode(path: Path) -> _Picture:
    """Read a file.

    Raises:
        DataError: it is no picture, has several pages, partly transparent pixels, or values that are no labels.
    """
    image = open_image(path, formats=MASK_FORMATS, animated=False)
    lossy = image.format in ('JPEG', 'MPO')
    if image.mode == 'P':
        indices = np.asarray(image).astype(np.int32)
        return _Picture(path, _Kind.INDEX, indices, _palette(image, np.unique(indices), path), lossy)

    key = image.info.get('transparency')  # the gray value or colour that stands for transparent
    clear = None
    if image.mode.lower() in ('la', 'pa', 'rgba'):
        image = image.convert('LA' if image.mode.lower() == 'la' else 'RGBA')
        alpha = np.asarray(image.getchannel('A'))
        _check_opacity(alpha, path)
        clear = alpha == 0
        image = image.convert('L' if image.mode == 'LA' else 'RGB')
    if len(image.getbands()) > 1:
        red, green, blue = np.moveaxis(np.asarray(image.convert('RGB')).astype(np.int32), -1, 0)
        kind, codes = _Kind.COLOUR, (red << 16) + (green << 8) + blue
        key = (key[0] << 16) + (key[1] << 8) + key[2] if isinstance(key, tuple) and len(key) == 3 else None
    else:
        kind, codes = _Kind.VALUE, _gray_values(image, path)
    if isinstance(key, int):
        clear = codes == key
    if clear is not None:
        codes = np.where(clear, CLEAR, codes)
    return _Picture(path, kind, codes, np.empty(0, np.int32), lossy)


def _gray_values(image: Image.Image, path: Path) -> np.ndarray:
    """int32 [H, W] in 0 .. 255. In a picture of 16 bits with nothing but black and white, white becomes 255."""
    values = np.asarray(image)
    if image.mode == '1':
        return values.astype(np.int32) * 255
    if image.mode.startswith('I') and np.isin(values, (0, 65535)).all():
        return (values > 0).astype(np.int32) * 255
    whole = values.clip(0, MAX_LABEL).astype(np.int32) if np.isfinite(values).all() else None
    if whole is None or not np.array_equal(whole, values):
        raise DataError(
            f'{path}: expected whole labels from 0 to {MAX_LABEL}, found values from {values.min()} to '
            f'{values.max()}. Save the mask as an 8-bit palette or grayscale PNG.'
        )
    return whole


def _palette(image: Image.Image, used: np.ndarray, path: Path) -> np.ndarray:
    """int32 [256] of colours, or CLEAR. Entries that the file lacks are black. Without a palette, indices are gray."""
    if image.palette is None:
        return np.arange(256, dtype=np.int32) * GRAY
    colours = np.zeros((256, 3), np.int32)
    given = np.array((image.getpalette('RGB') or [])[: 3 * 256], np.int32).reshape(-1, 3)
    colours[: len(given)] = given
    alpha = np.full(256, 255)
    transparency = image.info.get('transparency')
    if isinstance(transparency, bytes):
        alpha[: len(transparency)] = np.frombuffer(transparency[:256], np.uint8)
    elif isinstance(transparency, int):
        alpha[transparency] = 0
    _check_opacity(alpha[used], path)
    return np.where(alpha == 0, CLEAR, colours @ np.array([1 << 16, 1 << 8, 1]))


def _check_opacity(alpha: np.ndarray, path: Path) -> None:
    if not np.isin(alpha, (0, 255)).all():
        raise DataError(
            f'{path}: expected pixels that are opaque or fully transparent, found partly transparent ones, as a soft '
            'brush or anti-aliasing leaves behind. Save the mask without smooth edges, or without transparency.'
        )


def _translate(codes: np.ndarray, labels: dict[int, int], path: Path) -> np.ndarray:
    """The labels of codes: uint8 of the same shape."""
    keys = np.array(sorted(labels), np.int32)
    place = np.searchsorted(keys, codes).clip(max=len(keys) - 1)
    if not len(keys) or not np.array_equal(keys[place], codes):
        raise DataError(
            f'{path}: expected the mask as it was at the start of the run, found it changed. Do not change masks '
            'during a run.'
        )
    return np.array([labels[key] for key in keys.tolist()], np.uint8)[place]


def _first_seen(codes: np.ndarray) -> np.ndarray:
    """[N]: the values in an array, by first appearance row by row."""
    flat = codes.ravel()
    runs = flat[np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])]  # much fewer than pixels
    values, places = np.unique(runs, return_index=True)
    return values[np.argsort(places)]


def _in_order(codes: list[np.ndarray]) -> list[int]:
    """All values of several arrays, by first appearance."""
    return list(dict.fromkeys(code for each in codes for code in each.tolist()))


def _hex(colour: int) -> str:
    return 'transparent' if colour == CLEAR else f'#{colour:06x}'


def _some_colours(colours: list[int]) -> str:
    return some([_hex(colour) for colour in colours])
