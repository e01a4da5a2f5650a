"""The parts that the evaluation scripts share: flags, presets and the run. Each adds the flags of its dataset."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.flags import (
    add_inference_flags,
    inference_config,
    load_networks,
    network_settings,
    parse_flags,
)
from scripts.presets import PRESETS, flags_text, presets_of, presets_text
from util.cli import DescriptionHelpFormatter
from util.ranks import rank

if TYPE_CHECKING:
    from dataset.sequence import Video
    from inference.run import Summary
    from inference.sources import Direction

log = logging.getLogger(__name__)


def evaluation_parser(description: str, *, size: int, dataset: str) -> argparse.ArgumentParser:
    """A parser with the flags of all evaluation scripts. A script adds the flags of its dataset and calls ``parse``.

    Args:
        size: default of ``--size``, the shorter side in pixels.
        dataset: the dataset whose presets the script offers, if it has any.
    """
    presets = presets_of(dataset)
    notes = [presets_text(dataset)] if presets else []
    notes.append('several GPUs or processes: torchrun --nproc_per_node=N SCRIPT FLAGS')
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=DescriptionHelpFormatter,
        epilog='\n\n'.join(notes),
    )
    add = parser.add_argument
    parser.set_defaults(preset=None)
    if presets:
        add(
            '--preset',
            choices=list(presets),
            metavar='NAME',
            help="use the settings of a row of the paper's tables (see below); other flags override them",
        )
    add('--output', required=True, help='folder for the masks; a second run with the same folder continues the first')
    add_inference_flags(parser, model=['saves/stcn.pth'], size=[size])
    add('--save_probs', action='store_true', help='also write the probabilities, OUTPUT/probabilities/.../FRAME.npz')
    add('--zip', action='store_true', help='also write OUTPUT.zip, an archive for the evaluation server')
    add('--overwrite', action='store_true', help='segment finished videos again')
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of an evaluation script. Flags that are not given have the values of the preset."""
    return parse_flags(parser, lambda args: PRESETS[args.preset].flags if args.preset else {}, argv=argv)


def segment_videos(
    args: argparse.Namespace,
    videos: Sequence['Video'],
    dataset: Mapping[str, object],
    *,
    direction: 'Direction' = 'forward',
    server: bool = False,
) -> 'Summary':
    """Load the networks and segment the videos.

    Args:
        dataset: describes the videos in ``settings.json``.
        server: whether a server scores these masks; the summary then says whether it would accept them.
    """
    from inference.outputs import archive_of
    from inference.run import run_dataset
    from inference.submission import check_submission
    from util.distributed import process_group

    if args.preset and rank() == 0:
        log_preset(args)
    networks = load_networks(args)
    with process_group('gloo'):
        summary = run_dataset(
            networks,
            videos,
            args.output,
            inference_config(args, networks),
            settings=network_settings(args) | dataset,
            direction=direction,
            object_chunk=args.object_chunk,
            overwrite=args.overwrite,
            save_probs=args.save_probs,
            archive=args.zip,
        )
    if server and rank() == 0 and not summary.failures:
        output = Path(args.output)
        summary.refusals = check_submission(archive_of(output) if args.zip else output, videos, every_label=False)
    return summary


def report(summary: 'Summary') -> int:
    """Print the summary of a run in one of its processes. Returns the exit status."""
    if rank() == 0:
        print(summary)
    return 1 if summary.failures or summary.refusals else 0


def log_preset(args: argparse.Namespace) -> None:
    """Log the flags of the preset, and those that other flags have overridden."""
    preset = PRESETS[args.preset]
    log.info('%s (%s): %s', args.preset, preset.rows, flags_text(preset.flags))
    if changes := preset.changes(vars(args)):
        log.info('changed by flags: %s', flags_text(changes))
