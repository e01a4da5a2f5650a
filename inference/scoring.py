"""Scores masks against ground truth with J and F, for frames, objects, videos and the whole data set."""

import json
import logging
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.io import DataError, is_black_and_white, read_mask, some
from dataset.sequence import GroundTruth
from dataset.youtube import Groups
from inference.outputs import SETTINGS_FILE
from util.metrics import MEASURES, VOID, Scores, clear_void, labels_in, score_frame, statistics

log = logging.getLogger(__name__)

STATISTICS = ('mean', 'recall', 'decay')


@dataclass(frozen=True)
class Pair:
    """The ground truth of a video, and the place of the masks to be scored."""

    truth: GroundTruth
    results: Path  # a folder of <frame>.png
    given: Mapping[str, list[int]] = field(default_factory=dict)  # frame -> objects whose masks the network was given

    def files(self) -> list[tuple[Path, Path]]:
        """The paths of the ground truth and the result for every frame."""
        return [(mask, self.results / f'{mask.stem}.png') for mask in self.truth.masks]


def score_results(
    truths: Sequence[GroundTruth],
    results: Path,
    *,
    groups: Groups | None = None,
    single: str | None = None,
    num_workers: int = 1,
) -> dict:
    """Score a run. Returns all numbers, from the data set down to single frames, as fractions in [0, 1].

    Args:
        truths: the ground truth of the videos to be scored.
        results: a folder of masks as ``<video>/<frame>.png``, or with the layout of a YouTubeVOS submission. Masks
            that the network was given, according to the run's settings, are not scored.
        groups: groups of categories. Each group gets its own mean, and ``G`` is the mean of these.
        single: the name of a video whose masks may lie directly in ``results``.
        num_workers: how many processes score; this does not change the numbers.

    Raises:
        DataError: ground truth or results are incomplete, unreadable or do not match, or there is nothing to score.
    """
    if (results / 'Annotations').is_dir():
        results = results / 'Annotations'
    of_one_video = single is not None and not (results / single).is_dir()
    given = _given(results, above=of_one_video or results.name == 'Annotations')
    pairs = []
    for truth in truths:
        direct = of_one_video and truth.name == single
        known = given.get(truth.name, {})
        if direct and len(given) == 1:  # the run may have given the video another name
            [known] = given.values()
        pairs.append(Pair(truth, results if direct else results / truth.name, known))
    check_complete(pairs)
    later = sum(max(0, len(pair.given) - 1) for pair in pairs)
    if later:
        log.info('%s: not scored are %d mask(s) after the first of a video, which were given', results, later)

    tables, short = {}, []
    for pair, scores in zip(pairs, _score_all(pairs, num_workers=num_workers), strict=True):
        if any(measures['J'] for measures in scores.values()):
            entries = _object_entries(pair.truth, scores)
            tables[pair.truth.name] = {**average(list(entries.values())), 'objects': entries}
        else:
            short.append(_too_short(pair))
    if not tables:
        if any(pair.given and len(pair.truth.masks) > 1 for pair in pairs):
            raise DataError(
                f'{short[0]}. There is nothing to score. Run eval_folder.py with the first mask of each object alone, '
                'so that the others can be scored.',
                options=['first_only'],
            )
        own = any(pair.given for pair in pairs)
        why = 'Later frames need masks, too.' if own else 'Is the ground truth of this split public?'
        raise DataError(f'{short[0]}. There is nothing to score. {why}')
    for line in short:
        log.warning('%s; not scored', line)

    every = [entry for table in tables.values() for entry in table['objects'].values()]
    if all(set(entry[measure]['frames'].values()) == {1.0} for entry in every for measure in MEASURES):
        log.warning(
            '%s: the masks equal the ground truth in every pixel that counts. Are these the ground truth itself, or '
            'masks of a network that was given it?',
            results,
        )
    numbers = {**average(every), 'sequences': tables}
    if groups is not None:
        members: dict[str, list[dict]] = {'seen': [], 'unseen': []}
        for entry in every:
            members[groups.of(entry.get('category', ''))].append(entry)
        means = {name: average(entries) for name, entries in members.items() if entries}
        numbers = {'G': float(np.mean([mean['J&F'] for mean in means.values()])), **means, **numbers}
    return numbers


def _given(results: Path, *, above: bool) -> dict[str, dict[str, list[int]]]:
    """Video -> frame -> objects whose masks the run was given, from its settings; empty if they do not say so.

    ``above``: the settings may also be one folder up, as for the results of a single video.
    """
    for folder in (results, results.parent) if above else (results,):
        with suppress(OSError, ValueError, AttributeError):
            if given := json.loads((folder / SETTINGS_FILE).read_text(encoding='utf-8')).get('given'):
                return given
    return {}


def check_complete(pairs: Sequence[Pair]) -> None:
    """Raise a DataError that lists all missing results, before anything is scored."""
    lines = ['expected a result <frame>.png for every ground-truth frame, missing are']
    for pair in pairs:
        missing = [result.stem for _, result in pair.files() if not result.is_file()]
        if missing:
            lines.append(f'  {pair.results}: {len(missing)} of {len(pair.truth.masks)} frames: {some(missing)}')
    if len(lines) > 1:
        raise DataError('\n'.join(lines))


def score(pair: Pair) -> Scores:
    """Compute J and F of every object of a video in every frame that counts.

    Raises:
        DataError: sizes differ, or the result has labels that the ground truth lacks.
    """
    import cv2  # scripts/evaluate.py --help must not wait for it

    cv2.setNumThreads(1)  # frames are scored in several processes, which would compete with OpenCV's threads
    scores, found = _score(pair, void=False)
    if VOID in scores and len(scores) > 1 and not pair.truth.binary:  # void is rare: all is read again where it occurs
        scores, found = _score(pair, void=True)
    extra = sorted(found.keys() - scores.keys())
    if extra:
        raise DataError(
            f'{found[extra[0]]}: expected the labels of the ground truth ({some(sorted(scores))}), found also '
            f'{some(extra)}. Does the result belong to this video, and does it have the same labels?'
        )
    if len(scores) > 1 and found.keys() == {1} and is_black_and_white(found[1]):
        raise DataError(
            f'{found[1]}: expected the labels of the ground truth ({some(sorted(scores))}), found black and white, '
            'which does not say which object is which. Write the label of each object, as a palette or grayscale PNG.'
        )
    for frame, labels in pair.given.items():
        for label in labels:
            for values in scores.get(label, {}).values():
                values.pop(frame, None)
    return dict(sorted(scores.items()))


def _score(pair: Pair, *, void: bool) -> tuple[Scores, dict[int, Path]]:
    """Return the scores, and for each label in the results the first file that has it; ``void``: 255 is void."""
    scores: Scores = {}
    found: dict[int, Path] = {}
    for i, (truth_path, result_path) in enumerate(pair.files()):
        truth, result = pair.truth.read(truth_path), read_mask(result_path)
        if truth.shape != result.shape:
            raise DataError(
                f'{result_path}: expected {truth.shape[1]} x {truth.shape[0]} pixels as in the ground truth, '
                f'found {result.shape[1]} x {result.shape[0]}. Write results at the size of the original frames.'
            )
        if pair.truth.binary:
            truth, result = (truth > 0).astype(np.uint8), (result > 0).astype(np.uint8)
        if void:
            clear_void(truth, result)
        found |= {label: found.get(label, result_path) for label in labels_in(result)}
        is_last = i == len(pair.truth.masks) - 1
        score_frame(scores, truth_path.stem, truth, result, counts=not (is_last and pair.truth.skip_last))
    return scores, found


def _score_all(pairs: Sequence[Pair], *, num_workers: int) -> list[Scores]:
    """The scores of every video, in order."""
    bar = {'total': len(pairs), 'unit': 'video', 'disable': None}  # None: a bar only on a terminal
    if num_workers <= 1 or len(pairs) == 1:
        return list(tqdm(map(score, pairs), **bar))
    workers = min(num_workers, len(pairs))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context('spawn')) as pool:
        return list(tqdm(pool.map(score, pairs), **bar))


def _too_short(pair: Pair) -> str:
    last = ' and before the last one' if pair.truth.skip_last else ''
    known = f', {len(pair.given)} of them given to the network' if pair.given else ''
    return (
        f'{pair.truth.name}: expected ground truth after the first annotated frame{last}, found '
        f'{len(pair.truth.masks)} in all{known}'
    )


def average(entries: list[dict]) -> dict:
    """The means over objects of every statistic."""
    means = {m: {s: float(np.mean([entry[m][s] for entry in entries])) for s in STATISTICS} for m in MEASURES}
    return {'J&F': (means['J']['mean'] + means['F']['mean']) / 2, **means}


def _object_entries(truth: GroundTruth, scores: Scores) -> dict[str, dict]:
    """Label -> J&F, J and F with their statistics and frames."""
    entries = {}
    for label, measures in scores.items():
        if not measures['J']:
            log.warning('%s: object %d is not scored, because no frame after its first one counts', truth.name, label)
            continue
        entry = average([{name: statistics(list(frames.values())) for name, frames in measures.items()}])
        for name, frames in measures.items():
            entry[name]['frames'] = frames
        if category := truth.categories.get(label):
            entry['category'] = category
        entries[str(label)] = entry
    return entries
