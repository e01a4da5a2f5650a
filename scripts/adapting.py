"""Adapts the network of a script to one video."""

import argparse
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from inference.outputs import replaceable
from inference.sources import UserSource
from scripts.flags import make_ready, model_files
from util.cli import positive
from util.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from inference.continuing import Unfinished
    from model import Network
    from training.adapt import Adapting

log = logging.getLogger(__name__)

ADAPTED = 'adapted.pth'  # file in the output folder with the adapted network
SECONDS = 30
MOST_FRAMES = 32  # with more annotated frames, each would be seen hardly more than once


def add_adapt_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--adapt``: ``None`` without it, otherwise a number of seconds."""
    parser.add_argument(
        '--adapt',
        nargs='?',
        type=positive,
        const=SECONDS,
        metavar='SECONDS',
        help='first train a copy of the network for SECONDS on clips made of the frames that have a mask, and write '
        f'it to OUTPUT/{ADAPTED}. On a CPU, only processor time counts (default: off; --adapt alone: {SECONDS})',
    )


def check_adapt(args: argparse.Namespace, source: UserSource) -> None:
    """Raise ``UserError`` if ``--adapt`` cannot be used with these inputs."""
    if args.adapt and source.live:
        raise UserError(
            f'{source.name}: adapting needs the frames before the segmentation starts, and a camera does not have '
            'them yet; record a video first',
            options=['adapt'],
        )
    if args.adapt:
        single_model(args)


def single_model(args: argparse.Namespace) -> str | Path:
    """The file of the network to adapt. Raises ``UserError`` if ``--model`` names several."""
    files = model_files(args)
    if len(files) > 1:
        raise UserError(f'expected one network to adapt, found {len(files)}', options=['model'])
    return files[0]


def begin(args: argparse.Namespace, frames: 'Iterable[tuple[np.ndarray, np.ndarray]]') -> 'Adapting':
    """Prepare to adapt the network of ``--model`` to annotated frames. Raises what :class:`Adapting` raises.

    Raises:
        UserError: there are several networks.
    """
    from model import load_network
    from training.adapt import Adapting
    from util.distributed import choose_device

    return Adapting(load_network(single_model(args), device=choose_device(args.device)), frames)


def adapted_network(args: argparse.Namespace, source: UserSource, unfinished: 'Unfinished') -> 'Network':
    """The network adapted to the video, ready for inference. If the output folder does not have it yet, it is trained.

    A continued run thus has the weights of the run that it continues. A run that is killed while its network adapts
    leaves no network, and the next one adapts it again.

    Raises:
        DataError: a frame or a mask cannot be read.
        OutputError: the run to be continued has lost its adapted network.
        OSError: the network cannot be written.
    """
    from model import load_network, save_network
    from util.distributed import choose_device

    path = args.output / ADAPTED
    if path.exists():
        log.info('%s: the network was adapted before, and is used again', path)
    elif unfinished.begun:
        raise replaceable(f'{path}: expected the adapted network of an unfinished run, found none')
    else:
        adapting = begin(args, source.annotated_frames(MOST_FRAMES))
        log.info(
            'adapting for %d s to %d of %d annotated frames',
            args.adapt,
            len(adapting.dataset),
            len(source.annotations()),
        )
        train(adapting, args.adapt)
        # This folder marks the run as unfinished, so that it may be continued.
        unfinished.folder.mkdir(parents=True, exist_ok=True)
        save_network(path, adapting.network)
    return make_ready(load_network(path, device=choose_device(args.device)), args)


def train(adapting: 'Adapting', seconds: float) -> None:
    """Train, with a log line every ten seconds."""
    from inference.stream import LOG_SECONDS

    due = time.monotonic() + LOG_SECONDS
    for spent in adapting.steps(seconds):
        if time.monotonic() >= due:
            log.info('adapting: %d %%', 100 * spent)
            due += LOG_SECONDS
