"""Kills a training again and again, and compares what comes out with an uninterrupted one.

    python tests/kill_training.py --kills 20
"""
import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.checkpoint import read_checkpoint
from tests.trees import make_roots

REPOSITORY = Path(__file__).parents[1]
TINY = [sys.executable, str(REPOSITORY / 'tests' / 'tiny.py')]
ENVIRONMENT = os.environ | {'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'}


def flags(roots: dict[str, Path]) -> list[str]:
    places = [part for name, root in roots.items() for part in (f'--{name}', str(root))]
    return ['--arch', 'tiny', '--backbone_weights', 'none', '--crop_size', '48', '-b', '2', '--device', 'cpu', *places]


def kill_and_compare(folder: Path, *, kills: int, iterations: int, seed: int = 0, limit: float = 120) -> dict:
    """Train straight, train with ``kills`` SIGKILLs at random moments and resumes; report the largest difference.

    Stage 3 with two workers on seven samples, two an iteration: epochs end often, and max-skip changes five times. A
    checkpoint is written every other iteration and half there for a quarter of a second, so that many kills hit one.
    """
    rng = random.Random(seed)
    command = [*TINY, str(REPOSITORY / 'train.py'), *flags(make_roots(folder / 'roots')), '--stage', '3',
               '-i', str(iterations), '--num_workers', '2', '--save_every', '2', '--log_every', '1']
    options = {'cwd': folder, 'env': ENVIRONMENT, 'text': True}
    subprocess.run([*command, '--id', 'straight'], capture_output=True, check=True, timeout=4 * limit, **options)

    slow = options | {'env': ENVIRONMENT | {'STCN_TEST_SLOW_SAVE': '0.25'}}
    killed = half_written = 0
    while killed < kills:
        process = subprocess.Popen([*command, '--id', 'killed', '--resume'], stderr=subprocess.PIPE, **slow)
        deadline = time.monotonic() + limit
        for line in process.stderr:         # until the first iteration is finished
            if 'it/s' in line or time.monotonic() > deadline:
                break
        time.sleep(rng.uniform(0, 1.5))
        process.kill()
        finished = process.wait(limit) == 0
        process.stderr.close()
        killed += not finished
        half_written += bool(list((folder / 'saves' / 'killed').glob('.*.part')))
        if finished:
            break
    result = subprocess.run([*command, '--id', 'killed', '--resume'], capture_output=True, check=False,
                            timeout=4 * limit, **options)
    if result.returncode:
        raise RuntimeError(result.stderr)
    straight, resumed = (read_checkpoint(folder / 'saves' / name / f'{name}.pth')['network']
                         for name in ('straight', 'killed'))
    largest = max((straight[name].double() - resumed[name].double()).abs().max().item() for name in straight)
    return {'kills': killed, 'during a save': half_written, 'largest difference': largest}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20, help='default: %(default)s')
    parser.add_argument('--iterations', type=int, default=150, help='default: %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='of the moments; default: %(default)s')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(kill_and_compare(Path(folder), **vars(args)))
