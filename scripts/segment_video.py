"""Segment a video file, a folder of images or a camera, given the masks of some frames.

    python scripts/segment_video.py --input dog.mp4 --mask first.png --output ../results/dog
    python scripts/segment_video.py --input dog.mp4 --mask 0=dog.png,ball.png 120:3=cat.png --output ../results/dog
    python scripts/segment_video.py --input ../frames --mask 0=a.png 57=b.png --output ../results/dog --cutouts

OUTPUT/masks/FRAME.png   palette PNGs with the labels; FRAME: the name of the image, or the number of the video's frame
OUTPUT/overlay.mp4       the objects tinted on the video, with its timestamps and its audio
OUTPUT/cutouts/LABEL/    with --cutouts: each object alone on a transparent ground, FRAME.png
OUTPUT/strip.png         with --strip N: N frames side by side

Any length fits: memory holds a few frames and --max_memory_frames. Ctrl-C once ends the run after the frame it is at:
masks and overlay are whole up to there. A second time it ends at once: the masks stay, there is no overlay.
"""

import argparse
import json
import logging
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from dataset.io import FRAME_SUFFIXES, DataError, fit_mask, list_frames, read_image, read_mask, write_mask
from scripts.flags import add_inference_flags, inference_config, load_networks, parse_flags
from util.cli import HelpFormatter, positive, run_main
from util.errors import MissingPackageError
from util.files import atomic_path
from util.stop import StopRequest
from util.video_file import VideoReader, VideoWriter

if TYPE_CHECKING:
    from torch import Tensor

    from model import Network

log = logging.getLogger(__name__)

READ_AHEAD = 2  # frames
WRITE_BEHIND = 8  # frames of each kind of output waiting to be written
LOG_SECONDS = 10
STRIP_HEIGHT = 240
STRIP_GAP = 4
SETTINGS_FILE = 'segment_video.json'


def main() -> int:
    args = parse()
    # Before anything heavy is loaded, all that can be wrong with the files.
    reader = open_input(args.input, fps=args.fps)
    annotations = [each.read((reader.height, reader.width)) for each in args.mask]
    masks = {each.frame: annotation for each, annotation in zip(args.mask, annotations, strict=True)}
    if len(masks) < len(args.mask):
        raise DataError('--mask: expected one entry a frame; several files of a frame are separated by commas')
    check_frames(masks, reader, args.input)
    output = Output(Path(args.output), video=overlay_writer(reader, args), cutouts=args.cutouts, strip=args.strip)

    networks = load_networks(args)
    output.claim(
        [Path(args.input), *(file for each in args.mask for file in each.files)],
        settings=vars(args),
        overwrite=args.overwrite,
    )
    return segment(networks, reader, masks, output, args)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    add = parser.add_argument
    add(
        '--input',
        required=True,
        help='a video file; a folder of .jpg, .jpeg or .png images; camera:0 (a number, or '
        'whatever else OpenCV opens)',
    )
    add(
        '--mask',
        required=True,
        nargs='+',
        action='extend',
        type=Given.parse,
        metavar='[FRAME[:LABEL]=]FILE[,FILE...]',
        help='frames count from 0, in a folder too, in the order of the '
        'names; 0 is the default. One FILE has the labels of all objects (palette, grayscale, or black and white). Of '
        'several FILEs, or with a LABEL, each is one object: whatever is not 0 in it; labelled LABEL, LABEL + 1 ... '
        '(1, 2 ... without), later ones in front. A mask of a later frame adds the objects that are new, and '
        'corrects those in it that are known; others stay',
    )
    add('--output', required=True, help='folder for the masks and everything else')
    add(
        '--overlay',
        metavar='FILE',
        help='video with the objects tinted; .mp4, .m4v, .mov or .mkv; needs the package '
        'av (default: OUTPUT/overlay.mp4)',
    )
    add('--no_overlay', dest='overlay', action='store_false', default=None, help='leave it out')
    add('--cutouts', action='store_true', help='also write OUTPUT/cutouts/LABEL/FRAME.png, RGBA, at full size')
    add('--strip', type=positive, metavar='N', help='also write OUTPUT/strip.png, N frames at even distances')
    add('--fps', type=frame_rate, default='25', help='of the overlay of a folder')
    add_inference_flags(parser, model=None, size=[480], max_memory_frames=64)
    add('--overwrite', action='store_true', help='delete what an earlier run wrote to OUTPUT; without, a run refuses')
    return parse_flags(parser)


class Help(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Leaves the lines above as they are."""


def frame_rate(text: str) -> Fraction:
    """A positive number or ratio (30000/1001), for argparse."""
    value = Fraction(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f'expected a positive number, found {text}')
    return value


@dataclass(frozen=True)
class Given:
    """One ``--mask``."""

    frame: int
    files: tuple[Path, ...]
    first_label: int | None  # of binary masks, one an object; None: one file with all labels

    @classmethod
    def parse(cls, text: str) -> 'Given':
        """``[FRAME[:LABEL]=]FILE[,FILE...]``, for argparse. A file whose own name has a comma is taken for one."""
        frame, label, names = re.fullmatch(r'(?:(\d+)(?::(\d+))?=)?(.+)', text, re.DOTALL).groups()
        files = [names] if Path(names).is_file() else names.split(',')
        first = int(label) if label else 1 if len(files) > 1 else None
        if first is not None and not 1 <= first <= 256 - len(files):
            raise argparse.ArgumentTypeError(f'labels are 1 to 255, found {text}')
        return cls(int(frame or 0), tuple(Path(name) for name in files), first)

    def read(self, size_hw: tuple[int, int]) -> 'Annotation':
        masks = [fit_mask(read_mask(file), size_hw, file) for file in self.files]
        for mask, file in zip(masks, self.files, strict=True):
            if not mask.any():
                log.warning('%s: shows no object', file)
        if self.first_label is None:
            return Annotation(masks[0], None)
        labels = np.zeros(size_hw, np.uint8)
        for label, mask in enumerate(masks, self.first_label):
            labels[mask > 0] = label
        return Annotation(labels, list(range(self.first_label, self.first_label + len(masks))))


@dataclass(frozen=True)
class Annotation:
    """What ``InferenceCore.step`` takes."""

    labels: np.ndarray  # uint8 [H, W]
    objects: list[int] | None  # that it speaks of; None: those in it


class FolderReader:
    """The images of a folder as :class:`VideoReader` gives the frames of a video."""

    has_audio = False

    def __init__(self, folder: Path, *, fps: Fraction):
        self.paths = list_frames(folder)
        if not self.paths:
            raise DataError(f'{folder}: expected images ({", ".join(FRAME_SUFFIXES)}), found none')
        self.height, self.width = read_image(self.paths[0]).shape[:2]
        self.frame_rate, self.time_base = fps, 1 / fps
        self.frames = len(self.paths)

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        for number, path in enumerate(self.paths):
            image = read_image(path)
            if image.shape[:2] != (self.height, self.width):
                raise DataError(
                    f'{path}: expected the size of the first image, {self.width} x {self.height}, '
                    f'found {image.shape[1]} x {image.shape[0]}'
                )
            yield image, number


class CameraReader:
    """A camera as :class:`VideoReader` gives a video; timestamps are those of the clock."""

    has_audio = False
    frames = None
    time_base = Fraction(1, 1000)

    def __init__(self, device: str):
        import cv2  # --help must not wait for it

        self.device = device
        self.capture = cv2.VideoCapture(int(device) if device.isdigit() else device)
        self.capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        there, image = self.capture.read()
        if not there:
            raise DataError(
                f'camera:{device}: no camera that OpenCV can open and read. Is it connected, free, and '
                'may this user read it?'
            )
        self.height, self.width = image.shape[:2]
        self.frame_rate = Fraction(self.capture.get(cv2.CAP_PROP_FPS) or 30).limit_denominator(1001)

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        import cv2

        start, last = time.monotonic(), -1
        there, image = self.capture.read()
        while there:
            last = max(last + 1, int((time.monotonic() - start) / self.time_base))
            yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB), last
            there, image = self.capture.read()
        log.warning('camera:%s: gives no more frames', self.device)


Reader = VideoReader | FolderReader | CameraReader


def open_input(name: str, *, fps: Fraction) -> Reader:
    """What ``--input`` names.

    Raises:
        DataError: there is no such thing, or it cannot be read.
    """
    if name.startswith('camera:'):
        return CameraReader(name.removeprefix('camera:'))
    if Path(name).is_dir():
        return FolderReader(Path(name), fps=fps)
    return VideoReader(name)


def check_frames(masks: dict[int, Annotation], reader: Reader, name: str) -> None:
    """Complain of masks beyond the end, as far as it is known: that of a video is an estimate."""
    if reader.frames is None or max(masks) < reader.frames:
        return
    message = f'{name}: has {reader.frames} frames (0 to {reader.frames - 1}), but --mask names frame {max(masks)}'
    if isinstance(reader, FolderReader):
        raise DataError(message)
    log.warning('%s, as far as the file says', message)


def overlay_writer(reader: Reader, args: argparse.Namespace) -> VideoWriter | None:
    """What writes the overlay video, if there is to be one; nothing is opened yet.

    Raises:
        DataError: the name has another suffix.
        MissingPackageError: it is asked for by name.
    """
    if args.overlay is False:
        return None
    try:
        return VideoWriter(
            args.overlay or Path(args.output, 'overlay.mp4'),
            reader.width,
            reader.height,
            time_base=reader.time_base,
            frame_rate=reader.frame_rate,
            audio_from=args.input if reader.has_audio else None,
        )
    except MissingPackageError as error:
        if args.overlay:
            raise
        log.warning('masks only, no overlay: %s (--no_overlay leaves out this warning)', error)
        return None


class Output:
    """Everything that a run writes. The ``write`` methods are called in threads of the background."""

    def __init__(self, folder: Path, *, video: VideoWriter | None, cutouts: bool, strip: int | None):
        self.folder = folder
        self.video = video
        self.masks = folder / 'masks'
        self.cutouts = folder / 'cutouts' if cutouts else None
        self.strip = Strip(folder / 'strip.png', strip) if strip else None

    def claim(self, inputs: list[Path], *, settings: dict, overwrite: bool) -> None:
        """Make the folder this run's.

        Raises:
            DataError: it has results of an earlier run and ``overwrite`` is false, files that no earlier run
                made, or one of the inputs.
        """
        cutouts, strip = self.folder / 'cutouts', self.folder / 'strip.png'
        overlay = self.video.path if self.video else self.folder / 'overlay.mp4'
        taken = {path.resolve() for path in (self.masks, cutouts, strip, overlay)}
        for path in (path.resolve() for path in inputs):
            if taken & {path, *path.parents}:
                raise DataError(f'{path}: is where the output would go; choose another --output, or move it')
        found = [
            *self.masks.glob('*.png'),
            *cutouts.glob('*/*.png'),
            *(path for path in (strip, overlay) if path.exists()),
        ]
        record = self.folder / SETTINGS_FILE
        if found and not overwrite:
            raise DataError(f'{self.folder}: has results already ({found[0]}); use --overwrite or another --output')
        if found and not record.exists():
            raise DataError(
                f'{found[0]}: is in the way, and {record.name}, which every run leaves, is not in '
                f'{self.folder}: nothing is deleted there; choose another --output'
            )
        # At once, so that an interrupted run leaves nothing of the one before.
        for path in found:
            path.unlink()
        with atomic_path(record) as temporary:
            temporary.write_text(json.dumps(settings, indent=2, default=str) + '\n')

    def write_masks(self, name: str, image: np.ndarray, labels: 'Tensor', objects: list[int]) -> None:
        """The files of one frame: mask and cut-outs."""
        labels = labels.cpu().numpy()
        write_mask(self.masks / f'{name}.png', labels)
        for label in objects if self.cutouts else ():
            alpha = np.where(labels == label, np.uint8(255), np.uint8(0))[..., None]
            with atomic_path(self.cutouts / str(label) / f'{name}.png') as temporary:
                Image.fromarray(np.concatenate([image & alpha, alpha], axis=2)).save(
                    temporary, format='PNG', compress_level=2
                )

    def write_picture(self, number: int, image: np.ndarray, labels: 'Tensor', pts: int) -> None:
        """What shows the objects on the frame: overlay and strip. Frames come in their order."""
        shown = self.strip is not None and self.strip.takes(number)
        if self.video is None and not shown:
            return
        from dataset.overlay import draw_masks

        image = draw_masks(image, labels.cpu().numpy())
        if self.video is not None:
            self.video.write(image, pts)
        if shown:
            self.strip.add(image)


class Strip:
    """N pictures at even distances of a video whose length nobody knows: every so many frames one is kept, and
    every second one dropped when there are many."""

    def __init__(self, path: Path, count: int):
        self.path = path
        self.count = count
        self.every = 1
        self.kept: list[np.ndarray] = []

    def takes(self, number: int) -> bool:
        return number % self.every == 0

    def add(self, image: np.ndarray) -> None:
        """The picture [H, W, 3] of a frame that it takes."""
        import cv2

        H, W = image.shape[:2]
        self.kept.append(
            cv2.resize(image, (max(1, round(W * STRIP_HEIGHT / H)), STRIP_HEIGHT), interpolation=cv2.INTER_AREA)
        )
        if len(self.kept) > 8 * self.count:
            del self.kept[1::2]
            self.every *= 2

    def write(self) -> None:
        if not self.kept:
            return
        chosen = np.linspace(0, len(self.kept) - 1, min(self.count, len(self.kept))).round().astype(int)
        gap = np.full((STRIP_HEIGHT, STRIP_GAP, 3), 255, np.uint8)
        parts = [part for index in chosen for part in (gap, self.kept[index])][1:]
        with atomic_path(self.path) as temporary:
            Image.fromarray(np.concatenate(parts, axis=1)).save(temporary, format='PNG')


def segment(
    networks: list['Network'],
    reader: Reader,
    masks: dict[int, Annotation],
    output: Output,
    args: argparse.Namespace,
) -> int:
    """Every frame through the network and into the output; prints what was done. Returns the exit status."""
    import torch

    from inference import Ensemble, InputError
    from inference.run import OUT_OF_MEMORY, BackgroundWriter, peak_memory

    core = Ensemble.of(
        networks, inference_config(args, networks), object_chunk=args.object_chunk, num_frames=reader.frames
    )
    if core.device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(core.device)

    failed, count, start = False, 0, time.perf_counter()
    with StopRequest('stopping after this frame; once more to stop at once') as stop, ExitStack() as stack:
        if output.video is not None:
            stack.enter_context(output.video)
        files = stack.enter_context(BackgroundWriter(WRITE_BEHIND))
        pictures = stack.enter_context(BackgroundWriter(WRITE_BEHIND, threads=1))  # in their order
        progress = stack.enter_context(Progress(reader.frames))
        try:
            for image, pts in read_ahead(iter(reader)):
                given = masks.get(count, Annotation(None, None))
                mask = None if given.labels is None else torch.from_numpy(given.labels)
                prob = core.step(torch.from_numpy(image).permute(2, 0, 1), mask, given.objects)
                labels = core.to_labels(prob)
                files.submit(output.write_masks, frame_name(reader, count), image, labels, core.objects)
                pictures.submit(output.write_picture, count, image, labels, pts)
                count += 1
                progress.update(count)
                if stop.signal:
                    break
        except (DataError, InputError, torch.OutOfMemoryError) as error:
            # Hours of work may lie behind: they are finished as after Ctrl-C.
            failed = True
            cause = OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else error
            log.error('error at frame %d: %s', count, cause)
    if output.strip:
        output.strip.write()

    seconds = time.perf_counter() - start
    print(
        f'frames: {count}\nFPS (wall clock): {count / seconds:.2f}\n'
        f'peak memory: {peak_memory(core.device) / 2**20:.0f} MiB\noutput: {output.folder}'
    )
    if stop.signal:
        log.warning('interrupted after %d frames; they are complete', count)
        return 128 + stop.signal
    missed = sorted(frame for frame in masks if frame >= count)
    if missed and not failed:
        log.error(
            '%s: has %d frames, so the masks of these were not used: %s',
            args.input,
            count,
            ', '.join(map(str, missed)),
        )
    return 1 if failed or missed else 0


def read_ahead(frames: Iterator) -> Iterator:
    """The same, a little ahead in a thread."""
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, frames, None) for _ in range(READ_AHEAD))
        while (frame := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, frames, None))
            yield frame


def frame_name(reader: Reader, number: int) -> str:
    return reader.paths[number].stem if isinstance(reader, FolderReader) else f'{number:05d}'


class Progress:
    """A bar on a terminal, else a line every ten seconds; with the time left where the length is known."""

    def __init__(self, total: int | None):
        self.total = total

    def __enter__(self) -> 'Progress':
        self.start = self.logged = time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            import progressbar

            self.bar = progressbar.ProgressBar(max_value=self.total or progressbar.UnknownLength, max_error=False)
        return self

    def update(self, count: int) -> None:
        """``count`` frames are done."""
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(count)
        elif now - self.logged >= LOG_SECONDS:
            self.logged = now
            rate = count / (now - self.start)
            left = max(0, round(((self.total or 0) - count) / rate))
            log.info(
                'frame %d%s, %.1f FPS%s',
                count,
                f' of {self.total}' if self.total else '',
                rate,
                f', {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left' if self.total else '',
            )

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.finish(dirty=True)


if __name__ == '__main__':
    run_main(main)
