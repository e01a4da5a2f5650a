"""Options that the evaluation scripts share. Imports nothing heavy: ``--help`` must not wait for it."""

import argparse
import hashlib
import logging
import math
import os
import signal
import sys
from pathlib import Path

from util.presets import PRESETS, flags_text, presets_text
from util.stop import stop_on_sigterm, stopped_by

log = logging.getLogger(__name__)

# What changes the masks by rounding at most, so that a run may continue with other values.
NOT_SETTINGS = {
    'model',
    'device',
    'num_threads',
    'overwrite',
    'output',
    'zip',
    'save_probs',
    'object_chunk',
    'encode_batch',
    'preset',
    'fast',
}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a flag's default where it says something."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if isinstance(action.default, list):
            return f'{action.help} (default: {" ".join(map(str, action.default))})'
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class _EvaluationHelp(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Leaves the lines of the presets as they are."""


def evaluation_parser(description: str, *, size: int, dataset: str) -> argparse.ArgumentParser:
    """A parser with the options of every evaluation script; each adds those of its dataset, then calls ``parse``.

    ``dataset`` is the one whose presets it takes, ``size`` its default shorter side.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=_EvaluationHelp,
        epilog=f'{presets_text(dataset)}\n\nseveral GPUs or processes: torchrun --nproc_per_node=N SCRIPT FLAGS',
    )
    add = parser.add_argument
    add(
        '--preset',
        choices=[name for name, preset in PRESETS.items() if dataset in preset.datasets],
        metavar='NAME',
        help="settings of one of the paper's rows (see below); flags change them",
    )
    add(
        '--model',
        nargs='+',
        default=['saves/stcn.pth'],
        metavar='FILE',
        help='checkpoint: a published one or our own; of several networks, the mean of their probabilities',
    )
    add('--output', required=True, help='folder for the masks; a second run continues there')
    add(
        '--size',
        type=not_negative,
        nargs='+',
        default=[size],
        metavar='PIXELS',
        help='shorter side at which the '
        'network works; 0: frames as they are; of several, the mean of their probabilities',
    )
    add(
        '--kernel_sigma',
        type=sigma,
        nargs='+',
        default=[0],
        metavar='SIGMA',
        help='kernelised memory read, for --size 600: 7, in pixels at stride 16; 0: none. One value, or one for each '
        'size',
    )
    add('--flip', action='store_true', help='also the mirrored video; the mean of both')
    add('--no_flip', dest='flip', action='store_false', default=False, help='not, whatever the preset says')
    add('--top', type=not_negative, default=20, help='memory positions that a query position reads; 0: all')
    add(
        '--mem_every',
        type=period,
        default=5,
        metavar='N',
        help='every n-th frame goes into the memory; 0 or none: only annotated ones',
    )
    add('--include_last', action='store_true', help='the previous frame is temporary memory, too')
    add(
        '--no_include_last',
        dest='include_last',
        action='store_false',
        default=False,
        help='not, whatever the preset says',
    )
    add(
        '--max_memory_frames',
        type=positive,
        help='bound of the memory: the least used frame goes, never an annotated one (default: no bound)',
    )
    add('--object_chunk', type=positive, help='objects at a time, to save memory (default: all)')
    add(
        '--encode_batch',
        type=positive,
        default=1,
        help='frames that go through the key encoder together; pays where '
        'one does not fill a GPU, takes memory for each',
    )
    add('--amp', action='store_true', help='half precision, the memory included; faster, with slightly other masks')
    add(
        '--half_memory',
        action='store_true',
        help="of all things only the memory's values in half precision; half of the memory, with slightly other masks",
    )
    add(
        '--compile',
        action='store_true',
        help='compile encoders and decoder with torch.compile, which takes minutes at first',
    )
    add(
        '--fast',
        action='store_true',
        help='the fastest settings that cost less than 0.1 J&F on ten sequences of '
        'DAVIS 2016 (docs/benchmarks.md): --amp',
    )
    add('--device', help='e.g. cuda:1 or cpu (default: the GPU, if there is one)')
    add(
        '--num_threads',
        type=positive,
        help='of each process on a CPU, where rounding depends on it (default: one a '
        'core, whatever the number of processes, so that it does not change the masks)',
    )
    add('--save_probs', action='store_true', help='also write probabilities/.../FRAME.npz')
    add('--zip', action='store_true', help='also write OUTPUT.zip, the archive that a server takes')
    add('--overwrite', action='store_true', help='segment again what is finished')
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line of an evaluation script; the preset's values where it says nothing."""
    args = parser.parse_args()
    if args.preset:
        parser.set_defaults(**PRESETS[args.preset].flags)
        args = parser.parse_args()
    args.amp |= args.fast
    if len(args.kernel_sigma) not in (1, len(args.size)):
        parser.error(
            f'--kernel_sigma: expected one value, or one for each --size ({len(args.size)}), '
            f'found {len(args.kernel_sigma)}'
        )
    return args


def positive(text: str) -> int:
    """A positive integer, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'expected a positive number, found {text}')
    return value


def not_negative(text: str) -> int:
    """Zero or a positive integer, for argparse."""
    return 0 if text == '0' else positive(text)


def period(text: str) -> int:
    """A number of frames, 0 for ``none``, for argparse."""
    return 0 if text == 'none' else not_negative(text)


def sigma(text: str) -> float:
    """Zero or a positive number, for argparse."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f'expected a positive number or 0, found {text}')
    return value


def evaluate(args: argparse.Namespace, videos: list) -> int:
    """Load the networks, segment the videos, print the summary. Returns the exit status."""
    import torch

    from inference import Member, load_model
    from inference.run import run_dataset
    from util.distributed import choose_device, process_group, rank

    if args.preset and rank() == 0:
        log_preset(args)
    device = choose_device(args.device)
    if device.type == 'cpu':
        torch.set_num_threads(args.num_threads or cores())
    networks = {path: load_model(path, device=device) for path in args.model}
    if args.compile:
        networks = {path: network.compiled() for path, network in networks.items()}
    members = [
        Member(networks[path], size=size or None, kernel_sigma=kernel_sigma or None, flip=flip)
        for path in args.model
        for size, kernel_sigma in zip(args.size, kernel_sigmas(args), strict=True)
        for flip in ((False, True) if args.flip else (False,))
    ]
    with process_group('gloo'):
        summary = run_dataset(
            members,
            videos,
            args.output,
            settings=settings(args),
            encode_batch=args.encode_batch,
            overwrite=args.overwrite,
            save_probs=args.save_probs,
            archive=args.zip,
            core_options={
                'top_k': args.top or None,
                'mem_every': args.mem_every or None,
                'include_last': args.include_last,
                'max_memory_frames': args.max_memory_frames,
                'object_chunk': args.object_chunk,
                'amp': args.amp,
                'half_memory': args.half_memory,
            },
        )
        if rank() == 0:
            print(summary)
    return 1 if summary.failures else 0


def log_preset(args: argparse.Namespace) -> None:
    """What the preset stands for, and what flags have changed in it."""
    preset = PRESETS[args.preset]
    log.info('%s (%s): %s', args.preset, preset.rows, flags_text(preset.flags))
    if changes := preset.changes(vars(args)):
        log.info('changed by flags: %s', flags_text(changes))


def kernel_sigmas(args: argparse.Namespace) -> list[float]:
    """One for each size."""
    return args.kernel_sigma if len(args.kernel_sigma) > 1 else args.kernel_sigma * len(args.size)


def settings(args: argparse.Namespace) -> dict[str, object]:
    """What determines the masks, for the output folder. Reads as it did when there was one network and one size."""
    found = {
        name: os.path.realpath(value) if name.endswith(('_path', 'root')) else value
        for name, value in vars(args).items()
        if name not in NOT_SETTINGS
    }
    found |= {'network': [sha256(path) for path in args.model], 'kernel_sigma': kernel_sigmas(args)}
    if not any(found['kernel_sigma']):
        del found['kernel_sigma']
    for name in ('flip', 'half_memory', 'compile'):
        if not found[name]:
            del found[name]
    return {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in found.items()}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def sha256(path: str | Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def run_main(main) -> None:
    """Call ``main() -> exit status``; what the user can mend becomes one line and status 1 or 2.

    Ctrl-C and SIGTERM end it with 130 and 143.
    """
    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stderr)
    stop_on_sigterm()
    try:
        sys.exit(main())
    except (KeyboardInterrupt, Exception) as error:
        if number := stopped_by(error):
            for each in (signal.SIGINT, signal.SIGTERM):  # a second one ends what still runs
                signal.signal(each, signal.SIG_DFL)
            print('interrupted; what is finished is kept', file=sys.stderr)
            sys.exit(128 + number)
        if os.environ.get('STCN_TRACEBACK') or not _is_for_the_user(error):
            raise
        sys.exit(f'error: {error}')


def _is_for_the_user(error: Exception) -> bool:
    """Looks only at what is imported already: an error of ours comes from a module that is."""
    kinds = [OSError, FloatingPointError, MemoryError]
    for module, name in (
        ('dataset.io', 'DataError'),
        ('model.checkpoint', 'CheckpointError'),
        ('torch', 'OutOfMemoryError'),
    ):
        if module in sys.modules:
            kinds.append(getattr(sys.modules[module], name))
    return isinstance(error, tuple(kinds))
