"""What every script's command line needs. Imports nothing heavy: ``--help`` must not wait for it."""

import argparse
import hashlib
import logging
import math
import os
import re
import signal
import sys
from fractions import Fraction
from pathlib import Path

from util.errors import cause_of, is_for_the_user, lacks_shared_memory
from util.stop import stop_on_sigterm, stopped_by


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of a flag, unless it is None or False."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action.default, list):
            return f'{action.help} (default: {" ".join(map(str, action.default))})'
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class DescriptionHelpFormatter(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Also keeps the line breaks of the description and the epilog."""


def positive(text: str) -> int:
    """A positive integer, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'expected a positive number, found {text}')
    return value


def frame_rate(text: str) -> Fraction:
    """A number or ratio of frames a second, for argparse.

    The result has a denominator of at most 1001, so 29.97002997 becomes 30000/1001: video files hold no fractions of
    large numbers.
    """
    number, _, divisor = text.partition('/')
    value = float(number) / (float(divisor or 1) or math.nan)
    if not 1 / 1000 <= value <= 1000:
        raise argparse.ArgumentTypeError(f'expected from 1/1000 to 1000 frames a second, found {text}')
    return Fraction(value).limit_denominator(1001)


def not_negative(text: str) -> int:
    """Zero or a positive integer, for argparse."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f'expected a positive number or 0, found {text}')
    return value


def period(text: str) -> int:
    """A number of frames, 0 for ``none``, for argparse."""
    return 0 if text == 'none' else not_negative(text)


def not_negative_number(text: str) -> float:
    """Zero or a positive number, for argparse."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f'expected a positive number or 0, found {text}')
    return value


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def sha256(path: str | Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def set_up_logging() -> None:
    """Plain lines on stderr."""
    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stderr)


def run_main(main) -> None:
    """Call ``main() -> exit status``; what the user can mend becomes one line and status 1 or 2.

    Ctrl-C and SIGTERM end it with 130 and 143.
    """
    # OpenMP reads this when torch is imported. Without it, threads that have no work would spin, and take the cores
    # from other processes.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    # Older launchers, such as torch.distributed.launch, give LOCAL_RANK also as a flag, which is removed here.
    words = '\0'.join(['', *sys.argv[1:]])
    sys.argv[1:] = re.sub(r'\0--local[-_]rank[=\0]\d+(?=\0|$)', '', words).split('\0')[1:]
    # What a Mac's GPU cannot do is then computed on the CPU. PyTorch reads this when it is imported, in main().
    os.environ.setdefault('PYTORCH_ENABLE_MPS_FALLBACK', '1')
    set_up_logging()
    stop_on_sigterm()
    try:
        sys.exit(main())
    except (KeyboardInterrupt, Exception) as error:
        if number := stopped_by(error):
            for each in (signal.SIGINT, signal.SIGTERM):  # a second one ends what still runs
                signal.signal(each, signal.SIG_DFL)
            print('interrupted; what is finished is kept', file=sys.stderr)
            sys.exit(128 + number)
        if os.environ.get('STCN_TRACEBACK'):
            raise
        if lacks_shared_memory(error):
            sys.exit(
                'error: too little shared memory for the processes that load data. A container has 64 MB unless it is '
                'started with --shm-size=8g or --ipc=host. --num_workers 0 needs none; in scripts that do not '
                f'train, --num_workers 1 needs none either ({cause_of(error)})'
            )
        if not is_for_the_user(error):
            raise
        flags = ', '.join(f'--{option}' for option in getattr(error, 'options', ()))
        sys.exit(f'error: {error}' + (f' ({flags})' if flags else ''))
