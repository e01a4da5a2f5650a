"""Compute how much memory inference and training take, within seconds and without a GPU.

    python scripts/benchmarks/memory.py                     # a table of the memory that they take
    python scripts/benchmarks/memory.py --check             # compare it with measurements

On a CPU, --check measures the peak memory of a process. On a GPU, it runs every row that should fit into 11 GB in a
process that may take no more than that.

The network runs on fake tensors, which have shapes but no data, and the sizes of all tensors that exist at a time are
added up. Workspaces of libraries (cuDNN, oneDNN's packed weights) and fragmentation are not included.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from util.cli import run_main


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--arch', default='stcn', help='network variant (default: stcn)')
    add('--check', action='store_true', help='compare the computed memory with measurements')
    add('--device', help='device for --check, e.g. cuda:1 or cpu (default: the GPU, if there is one)')
    args = parser.parse_args(argv)

    # They import torch, which --help need not wait for.
    from scripts.benchmarks import memory_model
    from util.distributed import choose_device

    if not args.check:
        memory_model.tabulate(args.arch)
    elif (device := choose_device(args.device)).type == 'cuda':
        memory_model.check_gpu(args.arch, device)
    else:
        memory_model.check_cpu(args.arch)
    return 0


if __name__ == '__main__':
    run_main(main)
