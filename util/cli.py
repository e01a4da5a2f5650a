"""Options that the evaluation scripts share. Imports nothing heavy: ``--help`` must not wait for it."""
import argparse
import hashlib
import logging
import os
import sys
from pathlib import Path

# What does not change the masks, so that a run may continue with other values.
NOT_SETTINGS = {'model', 'device', 'num_threads', 'overwrite', 'output', 'zip', 'save_probs', 'object_chunk'}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a flag's default where it says something."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def evaluation_parser(description: str, *, size: int) -> argparse.ArgumentParser:
    """A parser with the options of every evaluation script; each adds those of its dataset."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=HelpFormatter,
        epilog='Several GPUs or processes: torchrun --nproc_per_node=N SCRIPT FLAGS')
    add = parser.add_argument
    add('--model', default='saves/stcn.pth', help='checkpoint: a published one or our own')
    add('--output', required=True, help='folder for the masks; a second run continues there')
    add('--top', type=positive, default=20, help='memory positions that a query position reads')
    add('--mem_every', type=positive, default=5, help='every n-th frame goes into the memory')
    add('--include_last', action='store_true', help='the previous frame is temporary memory, too')
    add('--max_memory_frames', type=positive, help='bound of the memory: the least used frame goes, never an '
        'annotated one (default: no bound)')
    add('--size', type=not_negative, default=size,
        help='shorter side at which the network works; 0: frames as they are')
    add('--object_chunk', type=positive, help='objects at a time, to save memory (default: all)')
    add('--amp', action='store_true', help='half precision; faster, with slightly other masks')
    add('--device', help='e.g. cuda:1 or cpu (default: the GPU, if there is one)')
    add('--num_threads', type=positive, help='of each process on a CPU, where rounding depends on it (default: one a '
        'core, whatever the number of processes, so that it does not change the masks)')
    add('--save_probs', action='store_true', help='also write probabilities/.../FRAME.npz')
    add('--zip', action='store_true', help='also write OUTPUT.zip, the archive that a server takes')
    add('--overwrite', action='store_true', help='segment again what is finished')
    return parser


def positive(text: str) -> int:
    """A positive integer, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'expected a positive number, found {text}')
    return value


def not_negative(text: str) -> int:
    """Zero or a positive integer, for argparse."""
    return 0 if text == '0' else positive(text)


def evaluate(args: argparse.Namespace, videos: list) -> int:
    """Load the network, segment the videos, print the summary. Returns the exit status."""
    import torch

    from inference.run import run_dataset
    from model import load_network
    from util.distributed import choose_device, process_group, rank

    device = choose_device(args.device)
    if device.type == 'cpu':
        torch.set_num_threads(args.num_threads or cores())
    network = load_network(args.model, device=device)
    settings = {name: os.path.realpath(value) if name.endswith(('_path', 'root')) else value
                for name, value in vars(args).items() if name not in NOT_SETTINGS}
    settings['network'] = sha256(args.model)
    with process_group('gloo'):
        summary = run_dataset(
            network, videos, args.output, settings=settings, overwrite=args.overwrite,
            save_probs=args.save_probs, archive=args.zip,
            core_options={'top_k': args.top, 'mem_every': args.mem_every, 'include_last': args.include_last,
                          'max_memory_frames': args.max_memory_frames, 'size': args.size or None,
                          'object_chunk': args.object_chunk, 'amp': args.amp})
        if rank() == 0:
            print(summary)
    return 1 if summary.failures else 0


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def sha256(path: str | Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def run_main(main) -> None:
    """Call ``main() -> exit status``; what the user can mend becomes one line and status 1 or 2."""
    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stderr)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit('interrupted; what is finished is kept')
    except Exception as error:
        if os.environ.get('STCN_TRACEBACK') or not _is_for_the_user(error):
            raise
        sys.exit(f'error: {error}')


def _is_for_the_user(error: Exception) -> bool:
    """Looks only at what is imported already: an error of ours comes from a module that is."""
    kinds = [OSError, FloatingPointError]
    for module, name in (('dataset.io', 'DataError'), ('model.checkpoint', 'CheckpointError')):
        if module in sys.modules:
            kinds.append(getattr(sys.modules[module], name))
    return isinstance(error, tuple(kinds))
