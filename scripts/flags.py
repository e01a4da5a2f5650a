"""The flags of inference, which are the same in every script, and what they become: a configuration and networks."""

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inference.config import LIGHT_WEIGHTS, InferenceConfig, recommendation, recommended_config
from inference.outputs import OutputError
from inference.scoring import NothingLeftError
from scripts.presets import flags_text
from util.cli import cores, not_negative, period, positive, sha256, sigma
from util.ranks import rank

if TYPE_CHECKING:
    from model import Network

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flag:
    """A flag that sets a field of ``InferenceConfig``; 0 stands for ``None``."""

    field: str
    help: str
    type: Callable[[str], float] | None = None  # None: it is on or off, --NAME or --no_NAME
    several: bool = False
    metavar: str | None = None


FLAGS = {
    'size': Flag(
        'size',
        'shorter side at which the network works: smaller is faster, larger shows more detail; 0: frames as they are; '
        'of several, the mean of their probabilities',
        not_negative,
        several=True,
        metavar='PIXELS',
    ),
    'kernel_sigma': Flag(
        'kernel_sigma',
        'kernelised memory read, for --size 600: 7, in pixels at stride 16; 0: none. One value, or one for each size',
        sigma,
        several=True,
        metavar='SIGMA',
    ),
    'flip': Flag('flip', 'also the mirrored video; the mean of both'),
    'top': Flag('top_k', 'memory positions that a query position reads; 0: all', not_negative),
    'mem_every': Flag(
        'mem_every', 'every n-th frame goes into the memory; 0 or none: only annotated ones', period, metavar='N'
    ),
    'include_last': Flag('include_last', 'the previous frame is temporary memory, too'),
    'max_memory_frames': Flag(
        'max_memory_frames',
        'bound of the memory: the least used frame goes, never an annotated one; 0: no bound',
        not_negative,
        metavar='N',
    ),
    'amp': Flag('amp', 'half precision, the memory included; faster on a GPU, with slightly other masks'),
    'half_memory': Flag(
        'half_memory',
        "of all things only the memory's values in half precision; half of the memory, with slightly other masks",
    ),
}
"""Every flag of inference."""


def add_inference_flag(parser: argparse.ArgumentParser, name: str, **changes) -> None:
    """Add a flag of ``FLAGS``; ``changes`` are arguments of ``add_argument``. Its default is that of the field."""
    flag = FLAGS[name]
    parser.set_defaults(inference_flags=(*(parser.get_default('inference_flags') or ()), name))
    if flag.type is None:
        parser.add_argument(f'--{name}', **{'action': 'store_true', 'help': flag.help} | changes)
        parser.add_argument(
            f'--no_{name}',
            dest=name,
            action='store_false',
            default=False,
            help='not, whatever a preset or the checkpoint says',
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
    """All flags of a script that segments: networks, configuration, device.

    ``model`` are its networks by default; ``None``: the light one of this repository.
    """
    add = parser.add_argument
    add(
        '--model',
        nargs='+',
        default=model,
        metavar='FILE',
        help='checkpoint: a published one or our own; of several networks, the mean of their probabilities'
        + ('' if model else ' (default: the light one, weights/stcn_light.pth)'),
    )
    for name in FLAGS:
        add_inference_flag(parser, name, **({'default': defaults[name]} if name in defaults else {}))
    add('--object_chunk', type=positive, help='objects at a time, to save memory (default: all)')
    add(
        '--compile',
        action='store_true',
        help='compile encoders and decoder with torch.compile, which takes minutes at first',
    )
    add('--device', help='e.g. cuda:1 or cpu (default: the GPU, if there is one)')
    add(
        '--num_threads',
        type=positive,
        help='of each process on a CPU, where rounding depends on it (default: one a core, whatever the number of '
        'processes, so that it does not change the masks)',
    )


def parse_flags(
    parser: argparse.ArgumentParser,
    preset: Callable[[argparse.Namespace], Mapping] | None = None,
    *,
    argv: Sequence[str] | None = None,
) -> argparse.Namespace:
    """The command line; ``args.given`` names the flags of inference that were given, by the preset or by themselves.

    ``preset`` finds the values of flags that the command line names; other flags change them. ``argv`` are the words
    of the command line; ``None``: those that the program was started with.
    """
    args = parser.parse_args(argv)
    if values := preset(args) if preset else {}:
        parser.set_defaults(**values)
        args = parser.parse_args(argv)
    # Attributes that are there already keep argparse from setting defaults.
    missing = object()
    found = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(args.inference_flags, missing)))
    args.given = {name for name in args.inference_flags if getattr(found, name) is not missing} | {*values}
    try:
        inference_config(args)
    except ValueError as error:
        parser.error(f'--{error}')
    return args


def inference_config(args: argparse.Namespace, networks: Sequence['Network'] = ()) -> InferenceConfig:
    """What the flags say; where they say nothing, what the networks' checkpoints recommend, which is logged.

    Raises:
        ValueError: the flags do not go together.
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
    """The checkpoints of ``--model``, by default the light one."""
    return args.model or [LIGHT_WEIGHTS]


def load_networks(
    args: argparse.Namespace, prepare: Callable[['Network'], 'Network'] | None = None
) -> list['Network']:
    """The networks of ``--model``, each file's once, on ``--device``; ``prepare`` may still train them."""
    import torch

    from model import load_network
    from util.distributed import choose_device

    device = choose_device(args.device)
    if device.type == 'cpu':
        torch.set_num_threads(args.num_threads or cores())
    networks = {path: load_network(path, device=device) for path in model_files(args)}
    if prepare:
        networks = {path: prepare(network) for path, network in networks.items()}
    networks = {path: network.optimize_() for path, network in networks.items()}
    if args.compile:
        networks = {path: network.compile_() for path, network in networks.items()}
    return [networks[path] for path in model_files(args)]


def network_settings(args: argparse.Namespace) -> dict[str, object]:
    """What ``settings.json`` says of the networks."""
    return {'network': network_hashes(model_files(args))} | ({'compile': True} if args.compile else {})


def network_hashes(files: Sequence[str | Path]) -> str | list[str]:
    """The hashes of checkpoint files, as ``settings.json`` has them."""
    hashes = [sha256(path) for path in files]
    return hashes[0] if len(hashes) == 1 else hashes


@contextmanager
def naming_flags() -> Iterator[None]:
    """Adds the flags that help to what is wrong with an output folder, or with its scores."""
    try:
        yield
    except NothingLeftError as error:
        raise NothingLeftError(
            f'{error} A run of eval_folder.py with --first_only is given the first mask of each object alone, and '
            'leaves the others to be scored.'
        ) from error
    except OutputError as error:
        flags = '--overwrite or another --output' if error.replaceable else 'another --output'
        raise OutputError(f'{error}; use {flags}', replaceable=error.replaceable) from error
