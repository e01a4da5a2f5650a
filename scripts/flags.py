"""The flags of inference, which all scripts share, and the configuration and networks that they select."""

import argparse
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dataset.mask_files import GivenMask
from inference.config import LIGHT_WEIGHTS, InferenceConfig, recommendation, recommended_config
from scripts.presets import flags_text
from util.cli import cores, not_negative, not_negative_number, period, positive, sha256
from util.ranks import rank

if TYPE_CHECKING:
    from model import Network

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flag:
    """A flag that sets a field of ``InferenceConfig``; 0 stands for ``None``."""

    field: str
    help: str
    type: Callable[[str], float] | None = None  # None: a switch, --NAME and --no_NAME
    several: bool = False  # whether it takes several values
    metavar: str | None = None


FLAGS = {
    'size': Flag(
        'size',
        'shorter side in pixels at which the network works: smaller is faster, larger shows more detail; 0 keeps the '
        'size of the frames. With several values, the probabilities are averaged',
        not_negative,
        several=True,
        metavar='PIXELS',
    ),
    'kernel_sigma': Flag(
        'kernel_sigma',
        'standard deviation of the kernelised memory read, in pixels at stride 16: 7 for --size 600; 0: no kernel. '
        'One value, or one for each size',
        not_negative_number,
        several=True,
        metavar='SIGMA',
    ),
    'flip': Flag('flip', 'segment the mirrored video, too, and average the probabilities of both'),
    'top': Flag('top_k', 'how many memory positions each position of a frame reads; 0: all', not_negative),
    'mem_every': Flag('mem_every', 'memorise every N-th frame; 0 or none: only annotated frames', period, metavar='N'),
    'include_last': Flag('include_last', 'use the previous frame as a temporary memory frame, too'),
    'max_memory_frames': Flag(
        'max_memory_frames',
        'largest number of memory frames; then the least used one is removed, never an annotated one; 0: no limit',
        not_negative,
        metavar='N',
    ),
    'amp': Flag('amp', 'compute in half precision, also in the memory; made for GPUs. Masks differ slightly'),
    'half_memory': Flag(
        'half_memory',
        "store only the memory's values in half precision, which halves the memory. Masks differ slightly",
    ),
    'exact': Flag(
        'exact',
        'use direct convolutions on a CPU; needed to continue output folders of earlier versions. Without it, '
        'convolutions are faster and have larger rounding errors, up to 7e-4 in a probability',
    ),
}
"""Name -> flag, for all flags of inference."""


def add_inference_flag(parser: argparse.ArgumentParser, name: str, **changes) -> None:
    """Add a flag of ``FLAGS`` with the default of its field; ``changes`` are arguments of ``add_argument``."""
    flag = FLAGS[name]
    parser.set_defaults(inference_flags=(*(parser.get_default('inference_flags') or ()), name))
    if flag.type is None:
        parser.add_argument(f'--{name}', **{'action': 'store_true', 'help': flag.help} | changes)
        parser.add_argument(
            f'--no_{name}',
            dest=name,
            action='store_false',
            default=False,
            help=f'turn --{name} off, even if a preset or the checkpoint turns it on',
        )
        return
    default = getattr(InferenceConfig(), flag.field) or 0
    options = {'type': flag.type, 'default': [default] if flag.several else default, 'help': flag.help}
    if flag.several:
        options['nargs'] = '+'
    if flag.metavar:
        options['metavar'] = flag.metavar
    parser.add_argument(f'--{name}', **options | changes)


def add_inference_flags(parser: argparse.ArgumentParser, *, model: Sequence[str] | None, **defaults) -> None:
    """Add the flags of a script that segments: networks, configuration and device.

    ``model`` is the default of ``--model``; ``None`` is the light network of this repository.
    """
    add = parser.add_argument
    add(
        '--model',
        nargs='+',
        default=model,
        metavar='FILE',
        help='checkpoint file, a published one or our own. The probabilities of several networks are averaged'
        + ('' if model else ' (default: the light one, weights/stcn_light.pth)'),
    )
    for name in FLAGS:
        add_inference_flag(parser, name, **({'default': defaults[name]} if name in defaults else {}))
    add(
        '--object_chunk', type=positive, help='how many objects to compute at a time; fewer save memory (default: all)'
    )
    add(
        '--compile',
        action='store_true',
        help='compile encoders and decoder with torch.compile, which takes minutes at first',
    )
    add(
        '--device',
        help='device to compute on, e.g. cuda:1, mps or cpu (default: the GPU if there is one, on a Mac mps)',
    )
    add(
        '--num_threads',
        type=positive,
        help='CPU threads of each process; another number may change single pixels of the masks (default: one per '
        'core, also if several processes run)',
    )


def parse_flags(
    parser: argparse.ArgumentParser,
    preset: Callable[[argparse.Namespace], Mapping] | None = None,
    *,
    argv: Sequence[str] | None = None,
) -> argparse.Namespace:
    """Parse the command line. ``args.given`` has the names of the inference flags that it or its preset sets.

    ``preset`` returns the values of the preset that the command line names; flags on the command line override them.
    ``argv`` are the words of the command line; ``None`` takes those with which the program was started.
    """
    args = parser.parse_args(argv)
    if values := preset(args) if preset else {}:
        parser.set_defaults(**values)
        args = parser.parse_args(argv)
    # argparse sets no defaults for existing attributes, so the flags that are still `missing` were not given.
    missing = object()
    found = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(args.inference_flags, missing)))
    args.given = {name for name in args.inference_flags if getattr(found, name) is not missing} | {*values}
    try:
        inference_config(args)
    except ValueError as error:
        parser.error(f'--{error}')
    return args


def inference_config(args: argparse.Namespace, networks: Sequence['Network'] = ()) -> InferenceConfig:
    """The configuration from the flags. For flags that are not given, the recommendation of the checkpoints is used.

    Recommended values are logged.

    Raises:
        ValueError: a value is out of its range, or the flags contradict each other.
    """
    recommended = {name: value for name, value in recommendation(networks).items() if name not in args.given}
    if recommended and rank() == 0:
        log.info('recommended by the checkpoint: %s', flags_text(recommended))
    fields = {}
    for name in args.inference_flags:
        if name not in recommended:
            flag, value = FLAGS[name], getattr(args, name)
            if flag.type is not None:
                value = tuple(each or None for each in value) if isinstance(value, list) else value or None
            fields[flag.field] = value
    return recommended_config(networks, **fields)


def model_files(args: argparse.Namespace) -> Sequence[str | Path]:
    """The checkpoint files of ``--model``; by default the light network."""
    return args.model or [LIGHT_WEIGHTS]


def load_networks(args: argparse.Namespace) -> list['Network']:
    """Load the networks of ``--model`` on ``--device``. A file that is named twice is loaded once."""
    import torch

    from model import load_network
    from util.distributed import choose_device

    device = choose_device(args.device)
    if device.type == 'cpu':
        torch.set_num_threads(args.num_threads or cores())
    networks = {path: make_ready(load_network(path, device=device), args) for path in model_files(args)}
    return [networks[path] for path in model_files(args)]


def make_ready(network: 'Network', args: argparse.Namespace) -> 'Network':
    """Make a network faster for inference, as the flags ask for. It can then not be trained or saved."""
    network.optimize_(exact=args.exact)
    return network.compile_() if args.compile else network


def network_settings(args: argparse.Namespace) -> dict[str, object]:
    """The settings of the networks for ``settings.json``."""
    return {'network': network_hashes(model_files(args))} | ({'compile': True} if args.compile else {})


def network_hashes(files: Sequence[str | Path]) -> str | list[str]:
    """The hashes of checkpoint files as ``settings.json`` holds them: a single one, or a list."""
    hashes = [sha256(path) for path in files]
    return hashes[0] if len(hashes) == 1 else hashes


def file_hashes(video: str, masks: Sequence[Path]) -> dict[str, str]:
    """The hashes of masks, and the size and time of a video file, which may be too large to hash at every start."""
    files = {str(path): sha256(path) for path in masks}
    if Path(video).is_file():
        status = os.stat(video)
        files[video] = f'{status.st_size} bytes, modified at {status.st_mtime_ns} ns'
    return files


def given_mask(text: str) -> GivenMask:
    """Parse ``[FRAME[:LABEL]=]FILE[,FILE...]`` for argparse. An existing file with a comma in its name is one FILE."""
    frame, label, names = re.fullmatch(r'(?:(\d+)(?::(\d+))?=)?(.+)', text, re.DOTALL).groups()
    files = [names] if os.path.exists(names) else names.split(',')  # no error for names that are too long
    return GivenMask(
        tuple(map(Path, files)),
        frame=None if frame is None else int(frame),
        label=None if label is None else int(label),
    )
