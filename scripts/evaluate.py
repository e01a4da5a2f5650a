"""J and F of masks on disk against ground truth: DAVIS 2016 and 2017, YouTubeVOS, or folders of masks.

    python scripts/evaluate.py --results output/d17 --dataset davis2017 --root ../DAVIS/2017

An object is scored in every ground-truth frame after its first one; for DAVIS not in the last frame either.
It scores 0 where the result lacks it, 1 where the ground truth lacks it too. A sequence counts as the mean of its
objects, the data set as the mean of all objects. Frames of the result without ground truth are ignored. Label 255
beside other labels of a sequence's ground truth is void: its pixels do not count, whatever the result says there
(but for DAVIS 2016, where every label is the one object). Masks that eval_folder.py gave to the network, as
settings.json says, are not scored. Sequences too short to be scored are named and left out.

YouTubeVOS: the frames are those that meta.json lists for any object of the video. Seen and unseen categories, and
with them G, need "seen" or "unseen" at the top level of meta.json: a list of categories (if one of the two is
missing, it is all others).
"""

import argparse
import csv
import json
import logging
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.davis import ANNOTATIONS, davis_videos
from dataset.folder import ground_truth
from dataset.io import DataError, is_black_and_white, list_frames, natural_key, read_mask
from dataset.user_masks import VOID, UserMasks
from inference.outputs import SETTINGS_FILE
from util.cli import run_main
from util.files import atomic_path, check_writable
from util.metrics import MEASURES, Scores, labels_in, score_frame, statistics

log = logging.getLogger(__name__)

STATISTICS = ('mean', 'recall', 'decay')
COLUMNS = ['J&F', *(f'{measure} {name}' for measure in MEASURES for name in STATISTICS)]


@dataclass(frozen=True)
class Sequence:
    """The ground-truth masks of a video in frame order, and where the masks to be scored have to be."""

    name: str
    truth: tuple[Path, ...]
    results: Path  # a folder of <frame>.png
    masks: UserMasks | None = None  # what reads the ground truth, if it is not a benchmark's
    given: dict[str, list[int]] = field(default_factory=dict)  # of frames, the objects that the network was given
    skip_last: bool = False  # the last frame is not scored
    binary: bool = False  # every non-zero label is the one object, 1
    categories: dict[int, str] = field(default_factory=dict)  # of objects, where they are known

    def pairs(self) -> list[tuple[Path, Path]]:
        """Ground truth and result of every frame."""
        return [(truth, self.results / f'{truth.stem}.png') for truth in self.truth]

    def read_truth(self, path: Path) -> np.ndarray:
        """uint8 [H, W], labels."""
        return read_mask(path) if self.masks is None else self.masks.read(path.stem)

    def annotated(self) -> 'Sequence':
        """From the first object on: before it a result has nothing to say, and may be absent."""
        start = next((i for i, path in enumerate(self.truth) if self.read_truth(path).any()), len(self.truth))
        return replace(self, truth=self.truth[start:])


def davis_sequences(root: Path, results: Path, *, year: int, split: str) -> list[Sequence]:
    base, names = davis_videos(root, year=year, split=split)
    truth = {name: tuple(list_frames(base / ANNOTATIONS / name)) for name in names}
    return [Sequence(name, truth[name], results / name, skip_last=True, binary=year == 2016) for name in names]


def folder_sequences(root: Path, results: Path) -> list[Sequence]:
    """``ROOT/Annotations/<video>/<frame>.png``, or ``ROOT/Annotations/<frame>.png`` for a single video.

    The masks of a single video are in a folder of results named like ROOT, or directly in ``results``. Which of them
    the network was given is in the ``settings.json`` of the run.
    """
    sequences, given_to = [], _given(results)
    for name, given in ground_truth(root).items():
        truth = tuple(each.files[0] for each in given.values())
        direct = name == root.resolve().name and not (results / name).is_dir()
        masks = UserMasks(list(given.values()), name=name, ground_truth=True)
        place = results if direct else results / name
        sequences.append(Sequence(name, truth, place, masks, given_to.get(name, {})).annotated())
    return sequences


def _given(results: Path) -> dict[str, dict[str, list[int]]]:
    """Video -> frame -> objects that a run of ours was given; nothing where that is not known."""
    for folder in (results, results.parent):  # above, where these are the results of a single video
        with suppress(OSError, ValueError, AttributeError):
            if given := json.loads((folder / SETTINGS_FILE).read_text(encoding='utf-8')).get('given'):
                return given
    return {}


def youtube_sequences(root: Path, results: Path, meta: dict) -> list[Sequence]:
    """``ROOT/Annotations/<video>/<frame>.png`` for every frame in ``meta['videos'][video]['objects']``."""
    sequences, missing = [], []
    for name, video in meta['videos'].items():
        objects = video['objects']
        frames = sorted({frame for thing in objects.values() for frame in thing['frames']}, key=natural_key)
        truth = [root / 'Annotations' / name / f'{frame}.png' for frame in frames]
        missing += [path for path in truth if not path.is_file()]
        if not missing:
            categories = {int(label): thing.get('category', '') for label, thing in objects.items()}
            sequences.append(Sequence(name, tuple(truth), results / name, categories=categories).annotated())
    if missing:
        raise DataError(
            f'{root}: expected ground truth for every frame in meta.json, found none for {len(missing)} frames '
            f'({missing[0]} ...). The public validation set has first frames only: hold out training videos.'
        )
    return sequences


def read_meta(root: Path) -> dict:
    path = root / 'meta.json'
    try:
        meta = json.loads(path.read_text(encoding='utf-8'))
        objects = [item for video in meta['videos'].values() for item in video['objects'].items()]
        frames = [thing['frames'] for label, thing in objects if int(label)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f'{path}: expected the videos, objects and frames of a data set ({error!r})') from error
    if not frames:
        raise DataError(f'{path}: expected objects to score, found none')
    return meta


def is_seen(category: str, meta: dict) -> bool:
    """By the lists of categories in ``meta``; the one that is missing is all others."""
    if 'seen' in meta and 'unseen' in meta and category not in [*meta['seen'], *meta['unseen']]:
        raise DataError(f'meta.json: the category {category!r} is neither in "seen" nor in "unseen". Add it.')
    return category in meta['seen'] if 'seen' in meta else category not in meta['unseen']


def check_complete(sequences: list[Sequence]) -> None:
    """Raises a DataError that lists all that the results lack, before anything is scored."""
    lines = ['expected a result <frame>.png for every ground-truth frame, missing are']
    for sequence in sequences:
        missing = [result.stem for _, result in sequence.pairs() if not result.is_file()]
        if missing:
            lines.append(f'  {sequence.results}: {len(missing)} of {len(sequence.truth)} frames: {some(missing)}')
    if len(lines) > 1:
        raise DataError('\n'.join(lines))


def score(sequence: Sequence) -> Scores:
    """J and F of every object of a video in every frame that counts; no values where none does.

    Raises:
        DataError: sizes differ, or the result has objects that the ground truth lacks.
    """
    import cv2

    cv2.setNumThreads(1)  # the processes are the parallelism
    scores, found = _score(sequence, void=False)
    if VOID in scores and len(scores) > 1 and not sequence.binary:  # rare: who has none is spared a look at all masks
        scores, found = _score(sequence, void=True)
    extra = sorted(found.keys() - scores.keys())
    if extra:
        raise DataError(
            f'{found[extra[0]]}: expected the labels of the ground truth ({some(sorted(scores))}), found also '
            f'{some(extra)}. Does the result belong to this video, and were its labels kept?'
        )
    if len(scores) > 1 and found.keys() == {1} and is_black_and_white(found[1]):
        raise DataError(
            f'{found[1]}: expected the labels of the ground truth ({some(sorted(scores))}), found black and white, '
            'which does not say which object is which. Write the label of each object, as a palette or grayscale PNG.'
        )
    for frame, labels in sequence.given.items():
        for label in labels:
            for values in scores.get(label, {}).values():
                values.pop(frame, None)
    return dict(sorted(scores.items()))


def _score(sequence: Sequence, *, void: bool) -> tuple[Scores, dict[int, Path]]:
    """The scores, and of each label in the results the first file that has it; ``void``: of 255."""
    scores: Scores = {}
    found: dict[int, Path] = {}
    for i, (truth_path, result_path) in enumerate(sequence.pairs()):
        truth, result = sequence.read_truth(truth_path), read_mask(result_path)
        if truth.shape != result.shape:
            raise DataError(
                f'{result_path}: expected {truth.shape[1]} x {truth.shape[0]} pixels as in the ground truth, '
                f'found {result.shape[1]} x {result.shape[0]}. Write results at the size of the original frames.'
            )
        if sequence.binary:
            truth, result = (truth > 0).astype(np.uint8), (result > 0).astype(np.uint8)
        if void:
            result[(truth == VOID) | (result == VOID)] = 0
            truth[truth == VOID] = 0
        found |= {label: found.get(label, result_path) for label in labels_in(result)}
        is_last = i == len(sequence.truth) - 1
        score_frame(scores, truth_path.stem, truth, result, counts=not (is_last and sequence.skip_last))
    return scores, found


def some(values: list) -> str:
    return ', '.join(map(str, values[:10])) + (', ...' if len(values) > 10 else '')


def score_all(sequences: list[Sequence], *, num_workers: int) -> list[Scores]:
    """The scores of every video, in order; the same for any number of processes."""
    bar = {'total': len(sequences), 'unit': 'video', 'disable': None}  # None: only on a terminal
    if num_workers <= 1 or len(sequences) == 1:
        return list(tqdm(map(score, sequences), **bar))
    workers = min(num_workers, len(sequences))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context('spawn')) as pool:
        return list(tqdm(pool.map(score, sequences), **bar))


def average(entries: list[dict]) -> dict:
    """The means over objects of every statistic."""
    means = {m: {s: float(np.mean([entry[m][s] for entry in entries])) for s in STATISTICS} for m in MEASURES}
    return {'J&F': (means['J']['mean'] + means['F']['mean']) / 2, **means}


def object_entries(sequence: Sequence, scores: Scores) -> dict[str, dict]:
    """Label -> J&F, J and F with their statistics and frames."""
    entries = {}
    for label, measures in scores.items():
        if not measures['J']:
            log.warning('%s: object %d has no frame to score after its first one; left out', sequence.name, label)
            continue
        entry = average([{name: statistics(list(frames.values())) for name, frames in measures.items()}])
        for name, frames in measures.items():
            entry[name]['frames'] = frames
        if category := sequence.categories.get(label):
            entry['category'] = category
        entries[str(label)] = entry
    return entries


def evaluate(results: Path, root: Path, *, dataset: str, split: str | None = None, num_workers: int = 1) -> dict:
    """All numbers, from the data set down to single frames, as ``--json`` writes them.

    Raises:
        DataError: ground truth or results are incomplete, unreadable or do not match.
    """
    if (results / 'Annotations').is_dir():  # the layout of a YouTubeVOS submission
        results = results / 'Annotations'
    meta = {}
    if dataset == 'youtube':
        inner = root / (split or 'valid')
        root = inner if inner.is_dir() else root
        meta = read_meta(root)
        sequences = youtube_sequences(root, results, meta)
    elif dataset == 'folder':
        sequences = folder_sequences(root, results)
    else:
        sequences = davis_sequences(root, results, year=int(dataset[-4:]), split=split or 'val')
    check_complete(sequences)

    tables, short = {}, []
    for sequence, scores in zip(sequences, score_all(sequences, num_workers=num_workers), strict=True):
        if any(measures['J'] for measures in scores.values()):
            entries = object_entries(sequence, scores)
            tables[sequence.name] = {**average(list(entries.values())), 'objects': entries}
        else:
            last = ' and before the last one' if sequence.skip_last else ''
            known = f', {len(sequence.given)} of them given to the network' if sequence.given else ''
            short.append(
                f'{sequence.name}: expected ground truth after the first annotated frame{last}, found '
                f'{len(sequence.truth)} masks in all{known}'
            )
    if not tables:
        why = 'Is the ground truth of this split public?'
        if sequences[0].given:
            why = 'eval_folder.py --first_only gives it the first mask of each object alone.'
        raise DataError(f'{short[0]}. There is nothing to score. {why}')
    for line in short:
        log.warning('%s; not scored', line)

    every = [entry for table in tables.values() for entry in table['objects'].values()]
    numbers = {**average(every), 'sequences': tables}
    if 'seen' in meta or 'unseen' in meta:
        groups: dict[str, list[dict]] = {'seen': [], 'unseen': []}
        for entry in every:
            groups['seen' if is_seen(entry.get('category', ''), meta) else 'unseen'].append(entry)
        means = {name: average(entries) for name, entries in groups.items() if entries}
        numbers = {'G': float(np.mean([mean['J&F'] for mean in means.values()])), **means, **numbers}
    return numbers


def columns(entry: dict) -> list[float]:
    return [entry['J&F'], *(entry[measure][name] for measure in MEASURES for name in STATISTICS)]


def print_table(numbers: dict) -> None:
    """Percentages: a line a video and, where there are several, a line an object; the data set last."""
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
    """A row an object."""
    with atomic_path(path) as temporary, temporary.open('w', newline='', encoding='utf-8') as stream:
        writer = csv.writer(stream)
        writer.writerow(['sequence', 'object', 'category', *COLUMNS])
        for name, table in numbers['sequences'].items():
            for label, entry in table['objects'].items():
                writer.writerow([name, label, entry.get('category', ''), *columns(entry)])


def main() -> None:
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
        choices=['davis2016', 'davis2017', 'youtube', 'folder'],
        required=True,
        help='davis2016: every non-zero label is the one object; folder: the ground truth is '
        'ROOT/Annotations/<video>/<frame>.png',
    )
    add(
        '--root',
        type=Path,
        required=True,
        help='the data set; for youtube with <split>/Annotations and <split>/meta.json',
    )
    add('--split', help='(default: val for DAVIS, valid for youtube)')
    add('--json', type=Path, metavar='FILE', help='write all numbers, down to single frames')
    add('--csv', type=Path, metavar='FILE', help='write a row an object')
    add('--num_workers', type=int, default=os.cpu_count(), help='processes (default: one a core)')
    args = parser.parse_args()
    for path in filter(None, (args.json, args.csv)):
        check_writable(path)

    numbers = evaluate(args.results, args.root, dataset=args.dataset, split=args.split, num_workers=args.num_workers)
    print_table(numbers)
    if args.json:
        write_json(args.json, numbers)
    if args.csv:
        write_csv(args.csv, numbers)


if __name__ == '__main__':
    run_main(main)
