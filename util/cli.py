"""Options that the evaluation scripts share. Imports nothing heavy: ``--help`` must not wait for it."""
import argparse
import hashlib
import logging
import os
import sys
from pathlib import Path

# What does not change the masks, so that a run may continue with other values.
NOT_SETTINGS = {'model', 'device', 'overwrite', 'output'}


def evaluation_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options of every evaluation script; each adds those of its dataset."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--model', default='saves/stcn.pth', help='checkpoint: a published one or our own')
    parser.add_argument('--output', required=True, help='folder for the masks')
    parser.add_argument('--top', type=positive, default=20, help='memory positions that a query position reads')
    parser.add_argument('--mem_every', type=positive, default=5, help='every n-th frame goes into the memory')
    parser.add_argument('--include_last', action='store_true', help='the previous frame is temporary memory, too')
    parser.add_argument('--amp', action='store_true', help='half precision; faster, with slightly other masks')
    parser.add_argument('--device', default=argparse.SUPPRESS,
                        help='e.g. cuda:1 or cpu (default: cuda if there is one)')
    parser.add_argument('--overwrite', action='store_true', help='segment again what is finished')
    return parser


def positive(text: str) -> int:
    """A positive integer, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'expected a positive number, found {text}')
    return value


def evaluate(args: argparse.Namespace, videos: list, *, size: int | None = None) -> int:
    """Load the network, segment the videos, print the summary. Returns the exit status."""
    import torch

    from inference.run import run_dataset
    from model import load_network

    device = torch.device(getattr(args, 'device', None) or ('cuda' if torch.cuda.is_available() else 'cpu'))
    network = load_network(args.model, device=device)
    settings = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}
    settings |= {'network': sha256(args.model), 'size': size}
    summary = run_dataset(
        network, videos, args.output, settings=settings, overwrite=args.overwrite,
        core_options={'top_k': args.top, 'mem_every': args.mem_every, 'include_last': args.include_last,
                      'amp': args.amp, 'size': size})
    print(summary)
    return 1 if summary.failures else 0


def sha256(path: str | Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def run_main(main) -> None:
    """Call ``main() -> exit status``; what the user can mend becomes one line and status 1 or 2."""
    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stderr)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit('interrupted; finished videos are kept, the next run continues')
    except Exception as error:
        if os.environ.get('STCN_TRACEBACK') or not _is_for_the_user(error):
            raise
        sys.exit(f'error: {error}')


def _is_for_the_user(error: Exception) -> bool:
    from dataset.io import DataError
    from model import CheckpointError
    return isinstance(error, DataError | CheckpointError | OSError)
