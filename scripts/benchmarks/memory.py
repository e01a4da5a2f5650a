"""How much memory inference and training take, from what each operation allocates: no GPU and no time needed.

    python scripts/benchmarks/memory.py                     # what fits into 11 GB
    python scripts/benchmarks/memory.py --check             # the model against what is seen: on a CPU the process's
                                                            # peak, on a GPU all of the table in a process that may
                                                            # take 11 GB

The model runs the network on fake tensors, which have shapes and no data, and adds up what is alive. It knows nothing
of what libraries allocate besides (workspaces of cuDNN, packed weights of oneDNN) nor of fragmentation.
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
    add('--arch', default='stcn', help='variant (default: stcn)')
    add('--check', action='store_true', help='compare the model with what is seen (default: what fits into 11 GB)')
    add('--device', help='for --check, e.g. cuda:1 or cpu (default: the GPU, if there is one)')
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
