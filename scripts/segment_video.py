"""Segment the objects in a video file, a folder of images or a camera, given the masks of some frames.

    python scripts/segment_video.py --input dog.mp4 --mask first.png --output ../results/dog
    python scripts/segment_video.py --input dog.mp4 --mask 0=dog.png,ball.png 120:3=cat.png --output ../results/dog
    python scripts/segment_video.py --input ../frames --mask 0=a.png 57=b.png --output ../results/dog --cutouts
    python scripts/segment_video.py --input ../frames --mask ../masks --output ../results/dog

OUTPUT/masks/FRAME.png   palette PNGs with the labels; FRAME: the name of the image, or the number of the video's frame
OUTPUT/overlay.mp4       the video with the objects tinted, with its timestamps and its audio
OUTPUT/cutouts/LABEL/    with --cutouts: each object alone on a transparent background, FRAME.png
OUTPUT/strip.png         with --strip N: N frames side by side
OUTPUT/adapted.pth       with --adapt: the network that was trained further on the frames that have a mask
OUTPUT/report.json       with --report: how sure the network is of each object in each frame, and which frames to look
                         at first and perhaps correct with a further --mask; report.png shows this over time

The masks may be of any frames. With --direction both, frames before the first mask are segmented backwards, and frames
between two masks of an object use both masks.

The video may have any length: only a few frames and the memory (--max_memory_frames) are held at a time. Ctrl-C once
ends the run after the current frame: masks and overlay are complete up to there. Ctrl-C a second time ends it at once:
the masks stay, but there is no overlay. To continue after Ctrl-C or a kill, run the same command again: the masks are
those of an uninterrupted run.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.io import FRAME_SUFFIXES
from inference.outputs import UNFINISHED, Cutouts, Masks, Outputs, Pictures, Strip, claim
from inference.report import Report
from inference.sources import DIRECTIONS, UserSource, open_source
from inference.video_file import VideoWriter
from scripts.adapting import ADAPTED, adapted_network, add_adapt_flag, check_adapt
from scripts.flags import (
    add_inference_flags,
    file_hashes,
    given_mask,
    inference_config,
    load_networks,
    model_files,
    network_settings,
    parse_flags,
)
from util.cli import DescriptionHelpFormatter, frame_rate, positive, run_main
from util.errors import DataError, MissingPackageError, UserError
from util.files import locked_folder
from util.stop import StopRequest

if TYPE_CHECKING:
    from inference.continuing import Unfinished
    from inference.directions import Propagation

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    # All files are checked before anything heavy is loaded.
    source = open_source(args.input, fps=args.fps)
    source.annotate(args.mask)
    check_direction(args.direction, source)
    check_adapt(args, source)
    outputs = outputs_of(args, source)
    with locked_folder(args.output):
        return run(args, source, outputs)


def run(args: argparse.Namespace, source: UserSource, outputs: Outputs) -> int:
    """Load the networks, take the output folder and segment the video. Returns the exit status."""
    networks = load_networks(args)

    from inference import Ensemble
    from inference.continuing import Unfinished
    from inference.directions import Propagation

    config = inference_config(args, networks)
    make_core = partial(Ensemble.of, config=config, object_chunk=args.object_chunk, num_frames=source.frames)
    unfinished = Unfinished(args.output)
    # This also checks whether there is room, before earlier results are deleted.
    way = Propagation(partial(make_core, networks), source, args.direction, unfinished.waiting)
    claim_output(args, source, outputs, config.settings() | network_settings(args) | other_settings(args, source))
    if args.adapt:
        networks = [adapted_network(args, source, unfinished)]
        way = Propagation(partial(make_core, networks), source, args.direction, unfinished.waiting)
    if not source.live:
        unfinished.resume(way, outputs, source)
    return segment_video(way, source, outputs, None if source.live else unfinished, args.output)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=DescriptionHelpFormatter)
    add = parser.add_argument
    add(
        '--input',
        required=True,
        help=f'a video file, a folder of images ({" ".join(FRAME_SUFFIXES)}), or a camera: camera:0 for the first one '
        '(a number, or another name that OpenCV opens)',
    )
    add(
        '--mask',
        required=True,
        nargs='+',
        action='extend',
        type=given_mask,
        metavar='[FRAME[:LABEL]=]FILE[,FILE...]',
        help='masks of some frames. FRAME is the number of the frame; frames count from 0, those of a folder in the '
        'order of their names. Without FRAME, a mask named like a frame of the input folder belongs to this frame, '
        'and a single other mask to frame 0. FILE may also be a folder of such masks, or a folder with a folder of '
        'masks for each object. A single FILE has the labels of all objects (palette, grayscale, colours, or black '
        'and white). With several FILEs, or with LABEL, each FILE is one object: all that is not background. These '
        'get the labels LABEL, LABEL + 1 ... (without LABEL: 1, 2 ...), and later ones cover earlier ones. The mask '
        'of a later frame adds new objects and corrects the known ones that it shows; the others are kept',
    )
    add(
        '--direction',
        choices=DIRECTIONS,
        default='forward',
        help='forward: from the first mask to the end; backward: from the last mask to the beginning; both: all '
        'frames. A camera only allows forward (default: forward)',
    )
    add('--output', type=Path, required=True, help='folder for all results')
    add(
        '--overlay',
        metavar='FILE',
        help='where to write the video with the objects tinted: .mp4, .m4v, .mov or .mkv; needs the package '
        'av (default: OUTPUT/overlay.mp4)',
    )
    add('--no_overlay', dest='overlay', action='store_false', default=None, help='do not write the overlay video')
    add('--cutouts', action='store_true', help='also write OUTPUT/cutouts/LABEL/FRAME.png, RGBA, at full size')
    add('--strip', type=positive, metavar='N', help='also write OUTPUT/strip.png with N frames at even distances')
    add(
        '--report',
        action='store_true',
        help='also write OUTPUT/report.json and OUTPUT/report.png: how sure the network is of each object over time, '
        'and the frames to look at first',
    )
    add_adapt_flag(parser)
    add('--fps', type=frame_rate, default='25', help='frames a second of the overlay if the input is a folder')
    add_inference_flags(parser, model=None, size=[480], max_memory_frames=64)
    add(
        '--overwrite',
        action='store_true',
        help='delete the results of an earlier run in OUTPUT; without this flag they are an error',
    )
    return parse_flags(parser, argv=argv)


def outputs_of(args: argparse.Namespace, source: UserSource) -> Outputs:
    """The outputs that the flags ask for. No file is opened yet."""
    files = [Masks(args.output / 'masks')]
    if args.cutouts:
        files.append(Cutouts(args.output / 'cutouts'))
    if args.report:
        turn = {'forward': 0, 'both': min(source.annotations())}.get(args.direction)
        files.append(Report(args.output, given=source.masks.objects, turn=turn))
    strip = Strip(args.output / 'strip.png', args.strip) if args.strip else None
    return Outputs(files, Pictures(overlay_writer(args, source), strip))


def overlay_writer(args: argparse.Namespace, source: UserSource) -> VideoWriter | None:
    """The writer of the overlay video, or ``None`` if there is none.

    Raises:
        DataError: the name of the overlay has another suffix.
        MissingPackageError: ``--overlay`` is given, but PyAV is not installed.
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
        log.warning('there will be no overlay video: %s (--no_overlay avoids this warning)', error)
        return None


def check_direction(direction: str, source: UserSource) -> None:
    """Check that the video can be segmented in this direction, and log how many frames stay empty.

    Raises:
        DataError: the video is from a camera, which only allows forward, or lacks a frame that a mask is for.
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
        log.info('%d frames %s mask stay empty; --direction both segments them, too', empty, where)


def other_settings(args: argparse.Namespace, source: UserSource) -> dict[str, object]:
    """The settings in ``settings.json`` other than networks and configuration."""
    masks = {str(frame): [str(file) for file in each.files] for frame, each in source.masks.given.items()}
    # evaluate.py needs the names of the frames' files.
    given = {source.frame_name(frame): objects for frame, objects in source.masks.objects.items()}
    files = file_hashes(args.input, source.masks.files)
    settings: dict[str, object] = {'input': args.input, 'mask': masks, 'given': {args.input: given}, 'files': files}
    if args.direction != 'forward':
        settings['direction'] = args.direction
    if args.adapt:
        settings['adapt'] = args.adapt
    # A run can only be continued with the same outputs, since its earlier frames must have them, too.
    return settings | {name: True for name in ('cutouts', 'report') if getattr(args, name)}


def claim_output(args: argparse.Namespace, source: UserSource, outputs: Outputs, settings: dict) -> None:
    """Take the output folder for this run, whatever kinds of results an earlier run wrote there."""
    masks, cutouts = args.output / 'masks', args.output / 'cutouts'
    strip, *others = (args.output / name for name in ('strip.png', 'report.json', 'report.png', ADAPTED))
    overlay = outputs.pictures.video.path if outputs.pictures.video else args.output / 'overlay.mp4'
    given = [path for each in args.mask for path in each.files]
    claim(
        args.output,
        settings,
        places=[masks, cutouts, strip, overlay, *others],
        inputs=[Path(args.input), *given, *source.masks.files, *map(Path, model_files(args))],
        files=lambda: [
            *masks.glob('*.png'),
            *cutouts.glob('*/*.png'),
            *(path for path in (strip, overlay, *others) if path.exists()),
            *(args.output / UNFINISHED).glob('**/*.*'),
        ],
        overwrite=args.overwrite,
        resume=(args.output / UNFINISHED).exists(),
    )


def segment_video(
    way: 'Propagation', source: UserSource, outputs: Outputs, unfinished: 'Unfinished | None', folder: Path
) -> int:
    """Segment and write every frame, and print a summary. Returns the exit status."""
    import torch

    from inference.continuing import segment_on
    from inference.stream import STOPPING, Progress, peak_memory

    device = way.core.device
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    failed, start, finished_before = False, time.perf_counter(), len(way.finished)
    with StopRequest(STOPPING) as stop, outputs, Progress(way.steps, done=way.passed) as progress:
        try:
            segment_on(way, source, outputs, unfinished, stop=stop, progress=progress)
        except UserError as error:
            # Hours of work may be done already, so the outputs are completed as after Ctrl-C.
            failed = True
            log.error('error at frame %d: %s', way.next_frame, error)
    seconds = time.perf_counter() - start
    frames = len(way.finished)
    print(
        f'frames: {frames}\nFPS (wall clock): {(frames - finished_before) / seconds:.2f}\n'
        f'peak memory: {peak_memory(device) / 2**20:.0f} MiB\noutput: {folder}'
    )
    if stop.signal:
        more = '' if unfinished is None else ', and the same command continues from there'
        log.warning('interrupted: %d frames are complete%s', frames, more)
        return 128 + stop.signal
    if failed:
        return 1
    if unfinished is not None:
        unfinished.remove()
    return report_unused(source, way)


def report_unused(source: UserSource, way: 'Propagation') -> int:
    """Log an error for masks of frames that the video does not have. Returns the exit status."""
    count = way.passed if way.direction == 'forward' else source.count()
    missed = ', '.join(str(frame) for frame in source.masks.given if frame >= count)
    if missed:
        log.error('%s: has only %d frames; masks of these frames were not used: %s', source.name, count, missed)
    return 1 if missed else 0


if __name__ == '__main__':
    run_main(main)
