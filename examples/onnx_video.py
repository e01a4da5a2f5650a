"""Segment the objects of a video without PyTorch: numpy, onnxruntime, Pillow and the files of scripts/export.py.

    python scripts/export.py --output ../onnx/light
    python examples/onnx_video.py --model ../onnx/light --output ../results/swan \\
        --input examples/blackswan/JPEGImages --mask examples/blackswan/Annotations

This is the whole method of Space-Time Correspondence Networks (Cheng et al., NeurIPS 2021). Its memory holds keys and
values of some past frames, whose masks are known. A key describes what is at a position of a frame; a value, whether
an object is there. Each position of a new frame finds the positions in the memory whose keys are most similar to its
own, and the decoder makes a mask of their values. From time to time a frame enters the memory with the masks found.
Arrays: K objects, T memory frames; a frame has H W pixels and h w positions, one for 16 x 16 pixels.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])  # of ImageNet's RGB
ROWS = 16  # rows of positions that read the memory at a time; all similarities of a large frame may take gigabytes


class Network:
    """The functions of a network, such as ``network.decode(readout=..., f8=...)``, and its ``settings``."""

    def __init__(self, folder: Path):
        import onnxruntime  # here, so that --help does not need it

        self.sessions, self.settings = {}, {}
        for name in ('encode_query', 'encode_memory', 'read', 'decode'):
            path = folder / f'{name}.onnx'
            try:
                session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
                about = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
            except Exception as error:  # onnxruntime has an exception for each cause
                raise ValueError(f'{path}: cannot be loaded; export it again ({error})') from error
            function, _ = about.pop('function', None), about.pop('tensors', None)
            self.sessions[name], self.settings = session, self.settings or about
            if function != name or about != self.settings:
                raise ValueError(f'{path}: is not {name} of the same network and settings as the other files')

    def __getattr__(self, function: str) -> Callable[..., dict[str, np.ndarray]]:
        """The function of this name. It takes tensors by name, ignores those it does not need, and returns a dict."""
        session = self.sessions[function]
        inputs, outputs = ([each.name for each in group] for group in (session.get_inputs(), session.get_outputs()))
        return lambda **given: dict(zip(outputs, session.run(outputs, {n: given[n] for n in inputs}), strict=True))


class Memory:
    """Keys and values of past frames. An object that came later reads only the frames since then."""

    def __init__(self):
        self.frames = []  # a key [1, 1 or K, Ck, h, w] and a value [1, K, Cv, h, w] for each
        self.starts = []  # for each object, the number of its first frame in ``frames``
        self.temporary = False  # whether the next frame replaces the last one

    def add(self, memory_key: np.ndarray, memory_value: np.ndarray, *, permanent: bool) -> None:
        if self.temporary:
            self.frames.pop()
        self.starts += [len(self.frames)] * (memory_value.shape[1] - len(self.starts))
        self.frames.append((memory_key, memory_value))
        self.temporary = not permanent

    def read(self, network: Network, key: np.ndarray) -> np.ndarray:
        """``key [1, Ck, h, w] -> readout [1, K, Cv, h, w]``."""
        readouts = []
        for start in sorted(set(self.starts)):  # objects that came together are read together
            own = [k for k, each in enumerate(self.starts) if each == start]
            keys = np.concatenate([key if key.shape[1] == 1 else key[:, own] for key, _ in self.frames[start:]])
            values = np.concatenate([value[:, own] for _, value in self.frames[start:]])
            rows = [key[:, :, first : first + ROWS] for first in range(0, key.shape[2], ROWS)]
            parts = [network.read(memory_key=keys, memory_value=values, key=each)['readout'] for each in rows]
            readouts.append(np.concatenate(parts, axis=3))
        return np.concatenate(readouts, axis=1)


def segment(network: Network, frames: list[Path], masks: dict[int, np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the labels ``[H, W]`` of every frame. ``masks`` has those of some frames, by the number of the frame."""
    config, padding_colour = network.settings['inference'], network.settings['padding_colour']
    memory, objects, last_given, size = Memory(), [], None, masks[min(masks)].shape
    for time, path in enumerate(frames):
        try:
            frame = read_frame(path)
        except OSError as error:  # which does not always name the file
            raise ValueError(f'{path}: cannot be read; replace it ({error})') from error
        mask = masks.get(time, np.zeros(size, np.uint8))
        if not frame.shape[:2] == mask.shape == size:
            raise ValueError(f'{path}: this frame or its mask is of another size than the first mask, {size}')
        given = [int(label) for label in np.unique(mask) if label != 0]
        last_given = time if given else last_given
        if last_given is None:  # there is nothing to look for yet
            yield np.zeros(size, np.uint8)
            continue
        # What was segmented in this frame: the probabilities of the background and of each object.
        image, crop = prepare(frame, padding_colour, config)
        query = network.encode_query(image=image)
        prob = np.ones((1, *image.shape[2:]), np.float32)
        if objects:
            logits = network.decode(readout=memory.read(network, query['key']), **query)['logits'][0]
            prob = aggregate(1 / (1 + np.exp(-logits.clip(-60))))
        # A given mask replaces these where it has objects. Some of its objects may be new.
        if given:
            objects = objects + [label for label in given if label not in objects]
            rows, columns = (np.arange(new) * old // new for old, new in zip(size, image[crop].shape[2:], strict=True))
            mask = pad(mask[rows][:, columns])
            merged = np.zeros((len(objects), *mask.shape), np.float32)
            merged[: len(prob) - 1] = prob[1:] * ~np.isin(mask, given)
            for label in given:
                merged[objects.index(label)] = mask == label
            prob = aggregate(merged)

        # Frames with a given mask stay in the memory, and every n-th one after them.
        permanent = bool(given) or bool(config['mem_every'] and (time - last_given) % config['mem_every'] == 0)
        if (permanent or config['include_last']) and time + 1 < len(frames):
            seen = prob[1:] if network.settings['objects_in_padding'] else pad(prob[1:][crop])
            memory.add(**network.encode_memory(image=image, masks=seen[None], **query), permanent=permanent)
        yield np.uint8([0, *objects])[resize(prob[crop], size).argmax(axis=0)]


def aggregate(prob: np.ndarray) -> np.ndarray:
    """Probabilities of each object alone, ``[K, H, W]``, become those of one distribution, ``[1 + K, H, W]``."""
    background = np.prod(1 - prob, axis=0, keepdims=True)  # where none of the objects is
    prob = np.concatenate([background, prob]).clip(1e-7, 1 - 1e-7)
    odds = prob / (1 - prob)
    return odds / odds.sum(axis=0)


def prepare(frame: np.ndarray, padding_colour: list[float], config: dict) -> tuple[np.ndarray, tuple]:
    """``[H, W, 3]`` as the network takes it, ``[1, 3, H', W']``, and the index that cuts off its padding."""
    shape, size = frame.shape[:2], config['size']
    if size and (size < min(shape) or config['enlarge']):
        shape = size * shape[0] // min(shape), size * shape[1] // min(shape)
    image = resize(((frame.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1), shape, cubic=True)
    colour = np.float32(padding_colour)[:, None, None]
    top, left = -shape[0] % 16 // 2, -shape[1] % 16 // 2
    return (pad(image - colour) + colour)[None], (..., slice(top, top + shape[0]), slice(left, left + shape[1]))


def pad(array: np.ndarray) -> np.ndarray:
    """Zeros around ``[..., H, W]``, half on each side, up to multiples of 16."""
    sides = [(-size % 16 // 2, (-size % 16 + 1) // 2) for size in array.shape[-2:]]
    return np.pad(array, [(0, 0)] * (array.ndim - 2) + sides)


def resize(array: np.ndarray, shape: tuple[int, int], *, cubic: bool = False) -> np.ndarray:
    """``[C, H, W]`` at another size, bilinear or bicubic (a = -0.75), one axis after the other."""
    for axis in (axis for axis in (1, 2) if array.shape[axis] != shape[axis - 1]):
        old, new, result = array.shape[axis], shape[axis - 1], np.float32(0)
        point = (np.arange(new) + 0.5) * old / new - 0.5  # where each new pixel lies between the old ones
        for offset in (-1, 0, 1, 2) if cubic else (0, 1):
            neighbour = np.floor(point).astype(int) + offset
            d = np.abs(point - neighbour)
            near, far = (1.25 * d - 2.25) * d * d + 1, ((-0.75 * d + 3.75) * d - 6) * d + 3
            weight = np.float32(np.where(d <= 1, near, far) if cubic else 1 - d)
            result = result + array.take(neighbour.clip(0, old - 1), axis) * (weight[:, None] if axis == 1 else weight)
        array = result
    return array


def read_masks(path: Path, frames: list[Path]) -> tuple[dict[int, np.ndarray], list[int] | None]:
    """Labels by the numbers of their frames, and the palette of the first file."""
    numbers, masks, palettes = {frame.stem: number for number, frame in enumerate(frames)}, {}, []
    for file in [path] if path.is_file() else sorted(path.glob('*.png')):
        image = Image.open(file)
        if image.mode not in ('1', 'L', 'P') or (file != path and file.stem not in numbers):
            raise ValueError(f'{file}: expected a palette or grayscale image of labels, named like its frame')
        masks[numbers.get(file.stem, 0)] = np.asarray(image).astype(np.uint8)
        palettes.append(image.getpalette())
    if not frames or not masks:
        raise ValueError('no frames, or no masks: expected images and, for some of them, labels in PNG files')
    return masks, palettes[0]


def read_frame(path: Path) -> np.ndarray:
    """Read an image as uint8 [H, W, 3], turned as a viewer shows it."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith('I'):  # 16 bits, which Pillow would clip
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image.convert('RGB'))


def by_numbers(path: Path) -> list:
    """A key to sort 2.jpg before 10.jpg."""
    parts = re.split(r'(\d+)', path.stem)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', type=Path, required=True, help='folder of the exported network')
    parser.add_argument('--input', type=Path, required=True, help='folder of images, in the order of their numbers')
    parser.add_argument('--mask', type=Path, required=True, help='mask of the first frame, or folder of masks')
    parser.add_argument('--output', type=Path, required=True, help='new folder for the masks')
    args = parser.parse_args(argv)
    try:
        frames = [file for file in args.input.glob('*') if file.suffix.lower() in ('.jpg', '.jpeg', '.png')]
        frames.sort(key=by_numbers)
        if args.output.exists():
            raise ValueError(f'{args.output}: exists already; delete it or choose another place')
        (masks, palette), network = read_masks(args.mask, frames), Network(args.model)
        for path, labels in zip(frames, segment(network, frames, masks), strict=True):
            args.output.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(labels)
            if palette:
                image.putpalette(palette)
            image.save(args.output / f'{path.stem}.png')
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
