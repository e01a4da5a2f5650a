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

Masks of any frames will do: with --direction both, what lies before the first mask is segmented backwards, and between
two masks of an object both count.

Any length fits: memory holds a few frames and --max_memory_frames. Ctrl-C once ends the run after the frame it is at:
masks and overlay are whole up to there. A second time it ends at once: the masks stay, there is no overlay. The same
command again goes on from there, after Ctrl-C or a kill, to the same masks.
"""

import argparse
import logging
import re
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.io import FRAME_SUFFIXES
from dataset.mask_files import GivenMask
from inference.outputs import UNFINISHED, Cutouts, Masks, Outputs, Pictures, Strip, claim
from inference.report import Report
from inference.sources import DIRECTIONS, UserSource, open_source
from inference.video_file import VideoWriter
from scripts.flags import (
    add_inference_flags,
    inference_config,
    load_networks,
    naming_flags,
    network_settings,
    parse_flags,
)
from util.cli import HelpFormatter, frame_rate, positive, run_main
from util.errors import DataError, MissingPackageError, UserError
from util.stop import StopRequest

if TYPE_CHECKING:
    from inference.continuing import Unfinished
    from inference.directions import Propagation

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    # Before anything heavy is loaded, all that can be wrong with the files.
    source = open_source(args.input, fps=args.fps)
    source.annotate(args.mask)
    check_direction(args.direction, source)
    outputs = outputs_of(args, source)
    networks = load_networks(args)

    from inference import Ensemble
    from inference.continuing import Unfinished
    from inference.directions import Propagation

    config = inference_config(args, networks)
    make_core = partial(Ensemble.of, networks, config, object_chunk=args.object_chunk, num_frames=source.frames)
    unfinished = Unfinished(args.output)
    way = Propagation(make_core, source, args.direction, unfinished.waiting)
    with naming_flags():
        claim_output(args, source, outputs, config.settings() | network_settings(args) | other_settings(args, source))
        if not source.live:
            unfinished.resume(way, outputs, source)
    return segment_video(way, source, outputs, None if source.live else unfinished, args.output)


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
    add(
        '--direction',
        choices=DIRECTIONS,
        default='forward',
        help='forward: from the first mask to the end; backward: from the last mask to the beginning; both (default: '
        'forward). Not of a camera',
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
    add('--fps', type=frame_rate, default='25', help='of the overlay of a folder')
    add_inference_flags(parser, model=None, size=[480], max_memory_frames=64)
    add('--overwrite', action='store_true', help='delete what an earlier run wrote to OUTPUT; without, a run refuses')
    return parse_flags(parser, argv=argv)


class Help(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Leaves the lines above as they are."""


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
        turn = {'forward': 0, 'both': min(source.annotations())}.get(args.direction)
        files.append(Report(args.output, given=source.masks.objects, turn=turn))
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


def check_direction(direction: str, source: UserSource) -> None:
    """Say which frames stay empty, and whether the video can be segmented in this direction at all.

    Raises:
        DataError: it cannot: it is a camera, or a mask is for a frame that it does not have.
    """
    frames = sorted(source.annotations())
    empty, where = frames[0], 'before the first'
    if direction != 'forward':
        count = source.count()
        if beyond := [frame for frame in source.masks.given if frame >= count]:
            raise DataError(
                f'{source.name}: has {count} frames (0 to {count - 1}), found a mask of frame {beyond[-1]}'
            )
        empty, where = count - 1 - frames[-1], 'after the last'
    if empty and direction != 'both':
        log.info('%d frames lie %s mask and stay empty; --direction both fills them', empty, where)


def other_settings(args: argparse.Namespace, source: UserSource) -> dict[str, object]:
    """What ``settings.json`` says beside networks and configuration."""
    masks = {str(frame): [str(file) for file in each.files] for frame, each in source.masks.given.items()}
    # By the names of the frames' files, as evaluate.py needs them.
    given = {source.frame_name(frame): objects for frame, objects in source.masks.objects.items()}
    settings: dict[str, object] = {'input': args.input, 'mask': masks, 'given': {args.input: given}}
    if args.direction != 'forward':
        settings['direction'] = args.direction
    # Of an unfinished run, the frames of before have them or not.
    return settings | {name: True for name in ('cutouts', 'report') if getattr(args, name)}


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
            *(args.output / UNFINISHED).glob('**/*.*'),
        ],
        overwrite=args.overwrite,
        resume=(args.output / UNFINISHED).exists(),
    )


def segment_video(
    way: 'Propagation', source: UserSource, outputs: Outputs, unfinished: 'Unfinished | None', folder: Path
) -> int:
    """Every frame through the core and into the outputs; prints what was done. Returns the exit status."""
    import torch

    from inference.continuing import segment_on
    from inference.stream import STOPPING, Progress, peak_memory

    device = way.core.device
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    failed, start = False, time.perf_counter()
    with StopRequest(STOPPING) as stop, outputs, Progress(way.steps, done=way.passed) as progress:
        try:
            segment_on(way, source, outputs, unfinished, stop=stop, progress=progress)
        except UserError as error:
            # Hours of work may lie behind: they are finished as after Ctrl-C.
            failed = True
            log.error('error at frame %d: %s', way.next_frame, error)
    seconds = time.perf_counter() - start
    frames = len(way.finished)
    both = f', and in both directions {progress.count}' if progress.count > frames else ''
    print(
        f'frames: {frames}{both}\nFPS (wall clock): {(progress.count - progress.done) / seconds:.2f}\n'
        f'peak memory: {peak_memory(device) / 2**20:.0f} MiB\noutput: {folder}'
    )
    if stop.signal:
        log.warning(
            'interrupted: %d frames are complete%s',
            frames,
            '' if unfinished is None else ', and the same command goes on from there',
        )
        return 128 + stop.signal
    if failed:
        return 1
    if unfinished is not None:
        unfinished.remove()
    return report_unused(source, way)


def report_unused(source: UserSource, way: 'Propagation') -> int:
    """Complain of masks of frames that the video turned out not to have. Returns the exit status."""
    count = way.passed if way.direction == 'forward' else source.count()
    missed = [frame for frame in source.masks.given if frame >= count]
    if missed:
        log.error(
            '%s: has %d frames, so the masks of these were not used: %s',
            source.name,
            count,
            ', '.join(map(str, missed)),
        )
    return 1 if missed else 0


if __name__ == '__main__':
    run_main(main)
