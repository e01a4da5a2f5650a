"""Score masks on disk against ground truth with J and F: DAVIS 2016 and 2017, YouTubeVOS, or folders of masks.

    python scripts/evaluate.py --results output/d17 --dataset davis2017 --root ../DAVIS/2017

An object is scored in every ground-truth frame after its first one; for DAVIS the last frame is left out, too. On a
frame where only the result or only the ground truth lacks the object, it scores 0; where both lack it, 1. The score of
a sequence is the mean over its objects, the score of the data set the mean over all objects. Frames of the result
without ground truth are ignored. If a sequence's ground truth has label 255 beside other labels, 255 is void: its
pixels do not count (except for DAVIS 2016, where all labels are one object). Masks that eval_folder.py gave to the
network, according to settings.json, are not scored. Sequences that are too short to be scored are named and left out.

YouTubeVOS: the scored frames are those that meta.json lists for any object of the video. The means of seen and unseen
categories, and their mean G, need a list of categories "seen" or "unseen" at the top level of meta.json; a list that
is missing stands for all other categories.
"""

import argparse
import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.davis import davis_truth
from dataset.folder import folder_truth
from dataset.youtube import youtube_truth
from inference.scoring import STATISTICS, score_results
from util.cli import run_main
from util.files import atomic_path, check_writable
from util.metrics import MEASURES

COLUMNS = ['J&F', *(f'{measure} {name}' for measure in MEASURES for name in STATISTICS)]

DATASETS = {
    'davis2016': lambda root, split: (davis_truth(root, year=2016, split=split or 'val'), None),
    'davis2017': lambda root, split: (davis_truth(root, year=2017, split=split or 'val'), None),
    'youtube': lambda root, split: youtube_truth(root, split=split or 'valid'),
    'folder': lambda root, split: (folder_truth(root), None),
}
"""The reader of each data set: root and split -> ground truth, and groups of categories if it has some."""


def evaluate(results: Path, root: Path, *, dataset: str, split: str | None = None, num_workers: int = 1) -> dict:
    """Score a data set. Returns all numbers that ``--json`` writes; see :func:`inference.scoring.score_results`."""
    truths, groups = DATASETS[dataset](root, split)
    single = root.resolve().name if dataset == 'folder' else None
    return score_results(truths, results, groups=groups, single=single, num_workers=num_workers)


def columns(entry: dict) -> list[float]:
    return [entry['J&F'], *(entry[measure][name] for measure in MEASURES for name in STATISTICS)]


def print_table(numbers: dict) -> None:
    """Print percentages: a line for each video, for each of its objects if there are several, and for the data set."""
    lines = []
    for name, table in numbers['sequences'].items():
        lines.append((name, table))
        if len(table['objects']) > 1:
            lines += [(f'  object {label}', entry) for label, entry in table['objects'].items()]
    lines += [(name, numbers[name]) for name in ('seen', 'unseen') if name in numbers]
    lines.append(('all objects', numbers))
    width = max(len(name) for name, _ in lines)
    print(' ' * width + ''.join(f'{title:>10}' for title in COLUMNS))
    for name, entry in lines:
        print(f'{name:<{width}}' + ''.join(f'{100 * value:10.2f}' for value in columns(entry)))
    if 'G' in numbers:
        print(f'G: {100 * numbers["G"]:.2f}')


def write_json(path: Path, numbers: dict) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(numbers, indent=1, allow_nan=False) + '\n', encoding='utf-8')


def write_csv(path: Path, numbers: dict) -> None:
    """Write a table with a row for each object."""
    with atomic_path(path) as temporary, temporary.open('w', newline='', encoding='utf-8') as stream:
        writer = csv.writer(stream)
        writer.writerow(['sequence', 'object', 'category', *COLUMNS])
        for name, table in numbers['sequences'].items():
            for label, entry in table['objects'].items():
                writer.writerow([name, label, entry.get('category', ''), *columns(entry)])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        '--results',
        type=Path,
        required=True,
        help='masks to score: DIR/<video>/<frame>.png or DIR/Annotations/<video>/<frame>.png',
    )
    add(
        '--dataset',
        choices=list(DATASETS),
        required=True,
        help='data set. davis2016: all non-zero labels are one object; folder: the ground truth is '
        'ROOT/Annotations/<video>/<frame>.png',
    )
    add(
        '--root',
        type=Path,
        required=True,
        help='folder of the data set; for youtube it has <split>/Annotations and <split>/meta.json',
    )
    add('--split', help='split of the data set (default: val for DAVIS, valid for youtube)')
    add('--json', type=Path, metavar='FILE', help='write all numbers, down to single frames, to this file')
    add('--csv', type=Path, metavar='FILE', help='write a table with a row for each object to this file')
    add('--num_workers', type=int, default=os.cpu_count(), help='number of processes (default: one per core)')
    args = parser.parse_args(argv)
    for path in filter(None, (args.json, args.csv)):
        check_writable(path)

    numbers = evaluate(args.results, args.root, dataset=args.dataset, split=args.split, num_workers=args.num_workers)
    print_table(numbers)
    if args.json:
        write_json(args.json, numbers)
    if args.csv:
        write_csv(args.csv, numbers)
    return 0


if __name__ == '__main__':
    run_main(main)
