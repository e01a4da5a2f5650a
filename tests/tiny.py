"""``python tests/tiny.py SCRIPT FLAGS``: a script with the variant ``tiny``, for tests that need a process of its own.

STCN_TEST_SLOW_SAVE: seconds that a checkpoint is half written. STCN_TEST_DIE_AT: the iteration at which the process
is killed, unless torchrun has restarted it.
"""
import io
import os
import runpy
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from model import VARIANTS, STCNConfig
from training import loop

TINY = STCNConfig('mobilenet_v2', 'mobilenet_v2', key_dim=16, value_dim=32, decoder_widths=(32, 16))
save, hardest_fraction = torch.save, loop.hardest_fraction


def slow_save(content: dict, path: Path) -> None:
    buffer = io.BytesIO()
    save(content, buffer)
    half = len(buffer.getvalue()) // 2
    with open(path, 'wb', buffering=0) as file:
        file.write(buffer.getvalue()[:half])
        time.sleep(float(os.environ['STCN_TEST_SLOW_SAVE']))
        file.write(buffer.getvalue()[half:])


def die_at(iteration: int, *bootstrap: int) -> float:
    if iteration == int(os.environ['STCN_TEST_DIE_AT']) and os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') == '0':
        os.kill(os.getpid(), signal.SIGKILL)
    return hardest_fraction(iteration, *bootstrap)


if __name__ == '__main__':
    VARIANTS['tiny'] = TINY
    if 'STCN_TEST_SLOW_SAVE' in os.environ:
        torch.save = slow_save
    if 'STCN_TEST_DIE_AT' in os.environ:
        loop.hardest_fraction = die_at
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name='__main__')
