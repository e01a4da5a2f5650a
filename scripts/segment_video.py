"""Segment a video file, a folder of images or a camera, given the masks of some frames.

    python scripts/segment_video.py --input dog.mp4 --mask first.png --output ../results/dog
    python scripts/segment_video.py --input dog.mp4 --mask 0=dog.png,ball.png 120:3=cat.png --output ../results/dog
    python scripts/segment_video.py --input ../frames --mask 0=a.png 57=b.png --output ../results/dog --cutouts
    python scripts/segment_video.py --input ../frames --mask ../masks --output ../results/dog

OUTPUT/masks/FRAME.png   palette PNGs with the labels; FRAME: the name of the image, or the number of the video's frame
OUTPUT/overlay.mp4       the objects tinted on the video, with its timestamps and its audio
OUTPUT/cutouts/LABEL/    with --cutouts: each object alone on a transparent ground, FRAME.png
OUTPUT/strip.png         with --strip N: N frames side by side
OUTPUT/report.json       with --report: how sure the network is of each object in each frame, and which frames to look
                         at first, to correct them with one more --mask; report.png: a picture of it over time

Any length fits: memory holds a few frames and --max_memory_frames. Ctrl-C once ends the run after the frame it is at:
masks and overlay are whole up to there. A second time it ends at once: the masks stay, there is no overlay.
"""

import argparse
import logging
import re
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.io import FRAME_SUFFIXES
from dataset.mask_files import GivenMask
from inference.outputs import Cutouts, Masks, Outputs, Pictures, Strip, claim
from inference.report import Report
from inference.sources import UserSource, open_source
from inference.video_file import VideoWriter
from scripts.flags import (
    add_inference_flags,
    inference_config,
    load_networks,
    naming_flags,
    network_settings,
    parse_flags,
)
from util.cli import HelpFormatter, positive, run_main
from util.errors import DataError, MissingPackageError, UserError
from util.stop import StopRequest

if TYPE_CHECKING:
    from inference import Ensemble
    from model import Network

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    # Before anything heavy is loaded, all that can be wrong with the files.
    source = open_source(args.input, fps=args.fps)
    source.annotate(args.mask)
    outputs = outputs_of(args, source)
    networks = load_networks(args, partial(adapted, args, source) if args.adapt else None)

    from inference import Ensemble

    config = inference_config(args, networks)
    core = Ensemble.of(networks, config, object_chunk=args.object_chunk, num_frames=source.frames)
    masks = {frame: [str(file) for file in each.files] for frame, each in source.masks.given.items()}
    # By the names of the frames' files, as evaluate.py needs them.
    given = {source.frame_name(frame): objects for frame, objects in source.masks.objects.items()}
    what = {'input': args.input, 'mask': masks, 'given': {args.input: given}} | (
        {'adapt': args.adapt} if args.adapt else {}
    )
    with naming_flags():
        claim_output(args, source, outputs, config.settings() | network_settings(args) | what)
    return segment_video(core, source, outputs, args.output)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    add = parser.add_argument
    add(
        '--input',
        required=True,
        help=f'a video file; a folder of images ({" ".join(FRAME_SUFFIXES)}); camera:0 (a number, or whatever else '
        'OpenCV opens)',
    )
    add(
        '--mask',
        required=True,
        nargs='+',
        action='extend',
        type=given_mask,
        metavar='[FRAME[:LABEL]=]FILE[,FILE...]',
        help='frames count from 0, in a folder too, in the order of the names. Without FRAME, a mask named like a '
        'frame of the input folder is that of this frame, another single one that of frame 0; FILE may also be a '
        'folder of such masks, or one with a folder of masks for each object. One FILE has the labels of all objects '
        '(palette, grayscale, colours, or black and white). Of several FILEs, or with a LABEL, each is one object: '
        'whatever is not background in it; labelled LABEL, LABEL + 1 ... (1, 2 ... without), later ones in front. A '
        'mask of a later frame adds the objects that are new, and corrects those in it that are known; others stay',
    )
    add('--output', type=Path, required=True, help='folder for the masks and everything else')
    add(
        '--overlay',
        metavar='FILE',
        help='video with the objects tinted; .mp4, .m4v, .mov or .mkv; needs the package '
        'av (default: OUTPUT/overlay.mp4)',
    )
    add('--no_overlay', dest='overlay', action='store_false', default=None, help='leave it out')
    add('--cutouts', action='store_true', help='also write OUTPUT/cutouts/LABEL/FRAME.png, RGBA, at full size')
    add('--strip', type=positive, metavar='N', help='also write OUTPUT/strip.png, N frames at even distances')
    add(
        '--report',
        action='store_true',
        help='also write OUTPUT/report.json and OUTPUT/report.png: how sure the network is of each object over time, '
        'and the frames to look at first',
    )
    add(
        '--adapt',
        nargs='?',
        type=positive,
        const=30,
        metavar='SECONDS',
        help='before, train a copy of each network for so long on clips made of the frames that have a mask (default: '
        'not; without SECONDS 30, of CPU time where there is no GPU). The checkpoint stays as it is',
    )
    add('--fps', type=frame_rate, default='25', help='of the overlay of a folder')
    add_inference_flags(parser, model=None, size=[480], max_memory_frames=64)
    add('--overwrite', action='store_true', help='delete what an earlier run wrote to OUTPUT; without, a run refuses')
    return parse_flags(parser, argv=argv)


class Help(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Leaves the lines above as they are."""


def frame_rate(text: str) -> Fraction:
    """A positive number or ratio (30000/1001), for argparse."""
    value = Fraction(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f'expected a positive number, found {text}')
    return value


def given_mask(text: str) -> GivenMask:
    """``[FRAME[:LABEL]=]FILE[,FILE...]``, for argparse. A file whose own name has a comma is taken for one."""
    frame, label, names = re.fullmatch(r'(?:(\d+)(?::(\d+))?=)?(.+)', text, re.DOTALL).groups()
    files = [names] if Path(names).exists() else names.split(',')
    return GivenMask(
        tuple(map(Path, files)),
        frame=None if frame is None else int(frame),
        label=None if label is None else int(label),
    )


def outputs_of(args: argparse.Namespace, source: UserSource) -> Outputs:
    """What is to be written; nothing is opened yet."""
    files = [Masks(args.output / 'masks')]
    if args.cutouts:
        files.append(Cutouts(args.output / 'cutouts'))
    if args.report:
        files.append(Report(args.output))
    strip = Strip(args.output / 'strip.png', args.strip) if args.strip else None
    return Outputs(files, Pictures(overlay_writer(args, source), strip))


def overlay_writer(args: argparse.Namespace, source: UserSource) -> VideoWriter | None:
    """What writes the overlay video, if there is to be one.

    Raises:
        DataError: its name has another suffix.
        MissingPackageError: it is asked for by name.
    """
    if args.overlay is False:
        return None
    try:
        return VideoWriter(
            args.overlay or args.output / 'overlay.mp4',
            source.width,
            source.height,
            time_base=source.time_base,
            frame_rate=source.frame_rate,
            pixel_aspect=source.pixel_aspect,
            audio_from=args.input if source.has_audio else None,
        )
    except MissingPackageError as error:
        if args.overlay:
            raise
        log.warning('masks only, no overlay: %s (--no_overlay leaves out this warning)', error)
        return None


def adapted(args: argparse.Namespace, source: UserSource, network: 'Network') -> 'Network':
    """A network trained on the frames of the video that have a mask.

    Raises:
        DataError: it is a camera, whose frames cannot be seen before.
    """
    from training.adapt import MOST_FRAMES, adapt

    if source.frames is None:
        raise DataError(f'{source.name}: a network adapts to frames that are there before; a camera has none')
    frames = [(image, mask) for image, mask in islice(source.annotated_frames(), MOST_FRAMES) if mask.any()]
    log.info('adapting to %d frame(s) of the video for %d seconds', len(frames), args.adapt)
    size = inference_config(args, [network]).views[0].size
    return adapt(network, frames, seconds=args.adapt, working_size=size or min(source.height, source.width))


def claim_output(args: argparse.Namespace, source: UserSource, outputs: Outputs, settings: dict) -> None:
    """Make the folder this run's, whichever outputs an earlier one wrote there."""
    masks, cutouts = args.output / 'masks', args.output / 'cutouts'
    strip, *report = (args.output / name for name in ('strip.png', 'report.json', 'report.png'))
    overlay = outputs.pictures.video.path if outputs.pictures.video else args.output / 'overlay.mp4'
    claim(
        args.output,
        settings,
        places=[masks, cutouts, strip, overlay, *report],
        inputs=[Path(args.input), *source.masks.files],
        files=lambda: [
            *masks.glob('*.png'),
            *cutouts.glob('*/*.png'),
            *(path for path in (strip, overlay, *report) if path.exists()),
        ],
        overwrite=args.overwrite,
    )


def segment_video(core: 'Ensemble', source: UserSource, outputs: Outputs, folder: Path) -> int:
    """Every frame through the core and into the outputs; prints what was done. Returns the exit status."""
    import torch

    from inference.stream import STOPPING, Progress, peak_memory, segment

    if core.device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(core.device)
    failed, start = False, time.perf_counter()
    with StopRequest(STOPPING) as stop, outputs, Progress(source.frames) as progress:
        try:
            segment(core, source, outputs, stop=stop, progress=progress)
        except UserError as error:
            # Hours of work may lie behind: they are finished as after Ctrl-C.
            failed = True
            log.error('error at frame %d: %s', progress.count, error)
    count, seconds = progress.count, time.perf_counter() - start
    print(
        f'frames: {count}\nFPS (wall clock): {count / seconds:.2f}\n'
        f'peak memory: {peak_memory(core.device) / 2**20:.0f} MiB\noutput: {folder}'
    )
    if stop.signal:
        log.warning('interrupted after %d frames; they are complete', count)
        return 128 + stop.signal
    missed = [frame for frame in source.masks.given if frame >= count]
    if missed and not failed:
        log.error(
            '%s: has %d frames, so the masks of these were not used: %s',
            source.name,
            count,
            ', '.join(map(str, missed)),
        )
    return 1 if failed or missed else 0


if __name__ == '__main__':
    run_main(main)
