"""Check training data before the training: every image and mask that it reads, and what it leaves out.

    python scripts/check_data.py --davis_root ../DAVIS --yv_root ../YouTube
    python scripts/check_data.py --bl_root ../BL30K --quick
    python scripts/check_data.py --video_root ../mine

Lists files that cannot be read (all files are decoded), masks whose labels are not exact or that show no object,
images without masks, masks without images, masks that differ in size from their image, frames that differ in size from
the first one of their video, videos with fewer than three annotated frames, and videos of the training lists that are
absent. Your own videos may have frames without masks. The exit status is 1 if anything is listed.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dataset
from dataset.io import FRAME_SUFFIXES, DataError, image_size, read_image, read_mask
from util.cli import positive, run_main
from util.files import atomic_path, check_writable

KINDS = ('absent', 'too short', 'no mask', 'no image', 'unreadable', 'bad mask', 'size')
SHOWN = 5  # names in a line; --json writes all of them

Size = tuple[int, int]  # width, height


class Problem(NamedTuple):
    dataset: str
    kind: str  # one of KINDS
    path: str
    message: str
    names: tuple[str, ...] = ()  # names of the files or videos that have the problem, if it is not the path itself

    def __str__(self) -> str:
        names = ', '.join(self.names[:SHOWN]) + (', ...' if len(self.names) > SHOWN else '')
        return f'{self.kind}: {self.message}{": " if names else ""}{names}'


class Job(NamedTuple):
    """Images with their masks, checked by one process."""

    dataset: str
    size: int
    pairs: Callable[[], Iterable[tuple[str, str]]]  # no list, since BL30K has nearly five million pairs
    soft: bool = False  # whether the masks show one object and may have soft edges


Plan = tuple[list[Job], list[Problem]]


# Plans: the files that training reads, found by its own functions, and those that it leaves out


def plan_static(root: Path) -> Plan:
    pairs = list(dict.fromkeys(pair[:2] for pair in dataset.find_pairs(root)))  # it repeats those of some folders
    jobs = [
        Job('static', len(batch), partial(tuple, batch), soft=True)
        for batch in (pairs[i : i + 64] for i in range(0, len(pairs), 64))
    ]
    folders = [root, *sorted(root.glob('*/')), *sorted(root.glob('*/*/'))]
    problems = [problem for folder in folders for problem in unpaired('static', folder, folder, ('.jpg', '.jpeg'))]
    return jobs, problems


def plan_davis(root: Path) -> Plan:
    base = root / '2017' / 'trainval'
    return plan_videos(
        'DAVIS',
        base / 'JPEGImages' / '480p',
        base / 'Annotations' / '480p',
        dataset.find_davis(root),
        listed=dataset.read_split('davis_2017_train'),
    )


def plan_youtube(root: Path) -> Plan:
    base = root / 'train_480p'
    return plan_videos(
        'YouTubeVOS',
        base / 'JPEGImages',
        base / 'Annotations',
        dataset.find_youtube(root),
        listed=dataset.read_split('youtube_vos_train'),
    )


def plan_bl30k(root: Path) -> Plan:
    images, masks = root / 'JPEGImages', root / 'Annotations'
    names = {path.name for folder in (images, masks) for path in folder.glob('[!.]*/')}
    return plan_videos('BL30K', images, masks, dataset.find_bl30k(root), listed=sorted(names))


def plan_own(root: Path) -> Plan:
    images, masks = root / 'JPEGImages', root / 'Annotations'
    names = {path.name for folder in (images, masks) for path in folder.glob('[!.]*/')}
    return plan_videos('videos', images, masks, dataset.find_own([root]), listed=sorted(names), sparse=True)


def plan_videos(
    dataset: str, images: Path, masks: Path, videos: list, *, listed: list[str], sparse: bool = False
) -> Plan:
    """Plan the check of a set of videos.

    Args:
        videos: the videos that training reads.
        listed: the names of all videos that should be there.
        sparse: whether frames may lack a mask.
    """
    jobs = [Job(dataset, len(v.frames), partial(video_pairs, v.images, v.masks, v.frames)) for v in videos]
    problems = []
    absent = [name for name in listed if not (images / name).is_dir() and not (masks / name).is_dir()]
    if absent:
        message = f'{images}: expected {len(listed)} videos of the training list, found no folders of {len(absent)}'
        problems.append(Problem(dataset, 'absent', str(images), message, tuple(absent)))
    usable = {os.path.basename(video.images) for video in videos}
    for name in sorted(set(listed) - set(absent)):
        if name not in usable:
            message = f'{images / name}: expected at least three frames with image and mask'
            problems.append(Problem(dataset, 'too short', str(images / name), message))
        found = unpaired(dataset, images / name, masks / name, FRAME_SUFFIXES)
        problems += [problem for problem in found if not sparse or problem.kind != 'no mask']
    return jobs, problems


def video_pairs(images: str, masks: str, frames: tuple[str, ...]) -> Iterable[tuple[str, str]]:
    from dataset.video import annotation_path  # --help must not wait for it

    for name in frames:
        yield os.path.join(images, name), annotation_path(masks, name)


def unpaired(dataset: str, images: Path, masks: Path, suffixes: tuple[str, ...]) -> list[Problem]:
    """Images of the given suffixes that have no mask of the same stem, and masks that have no image."""
    image_stems, mask_stems = stems(images, suffixes), stems(masks, ('.png',))
    problems = []
    for kind, folder, alone in (
        ('no mask', images, image_stems - mask_stems),
        ('no image', masks, mask_stems - image_stems),
    ):
        if alone:
            message = f'{folder}: {kind} for {len(alone)} file(s)'
            problems.append(Problem(dataset, kind, str(folder), message, tuple(sorted(alone))))
    return problems


def stems(folder: Path, suffixes: tuple[str, ...]) -> set[str]:
    names = os.listdir(folder) if folder.is_dir() else ()
    return {
        os.path.splitext(name)[0] for name in names if name.lower().endswith(suffixes) and not name.startswith('.')
    }


# Checks of the files


def check(job: Job, *, quick: bool) -> list[Problem]:
    """Find the problems of a job's images and masks; with ``quick``, only headers are read."""
    import cv2  # --help must not wait for it

    cv2.setNumThreads(1)  # files are checked in several processes, which would compete with OpenCV's threads
    mask_size = header_size if quick else (soft_mask_size if job.soft else labels_size)
    problems, sizes, first = [], {}, None
    for image, mask in job.pairs():
        for path, kind, read in (
            (image, 'unreadable', header_size if quick else full_size),
            (mask, 'bad mask', mask_size),
        ):
            try:
                sizes[kind] = read(path)
            except DataError as error:
                sizes[kind] = None
                problems.append(Problem(job.dataset, kind, path, str(error)))
        expected, found = sizes.values()
        if expected and found and expected != found:
            message = '{}: expected {} x {} pixels as in its image, found {} x {}'.format(mask, *expected, *found)
            problems.append(Problem(job.dataset, 'size', mask, message))
        if expected and not job.soft:  # the frames of a video
            first = first or (image, expected)
            if expected != first[1]:
                message = '{}: expected {} x {} pixels as in {}, found {} x {}'
                message = message.format(image, *first[1], os.path.basename(first[0]), *expected)
                problems.append(Problem(job.dataset, 'size', image, message))
    return problems


def full_size(path: str) -> Size:
    return read_image(path).shape[1::-1]


def labels_size(path: str) -> Size:
    return read_mask(path).shape[::-1]


def soft_mask_size(path: str) -> Size:
    coverage = dataset.read_coverage(path)
    if not coverage.any():
        raise DataError(f'{path}: expected a mask of one object, found no object in it')
    return coverage.shape[::-1]


def header_size(path: str) -> Size:
    return image_size(path)[::-1]


def check_all(jobs: list[Job], *, quick: bool, num_workers: int) -> list[Problem]:
    problems = []
    work = partial(check, quick=quick)
    with (
        ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context('spawn')) as pool,
        tqdm(total=sum(job.size for job in jobs), unit='pair', disable=None) as bar,
    ):  # None: only on a terminal
        for job, found in zip(jobs, map(work, jobs) if num_workers == 1 else pool.map(work, jobs), strict=True):
            problems += found
            bar.update(job.size)
    return problems


# The report


def table(pairs: Counter, problems: list[Problem], datasets: list[str]) -> list[str]:
    """Format the numbers of pairs and problems, with a line for each data set."""
    counts = Counter()
    for problem in problems:
        counts[problem.dataset, problem.kind] += len(problem.names) or 1
    lines = [f'{"":10}' + ''.join(f'{title:>12}' for title in ('pairs', *KINDS))]
    for name in datasets:
        numbers = (pairs[name], *(counts[name, kind] for kind in KINDS))
        lines.append(f'{name:10}' + ''.join(f'{number:12,}' for number in numbers))
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--static_root', type=Path, help='folder of static images (stage 0)')
    add('--bl_root', type=Path, help='folder of BL30K (stage 1)')
    add('--yv_root', type=Path, help='folder of YouTubeVOS, with train_480p (stages 2, 3)')
    add('--davis_root', type=Path, help='folder of DAVIS, with 2017/trainval (stages 2, 3)')
    add('--video_root', type=Path, nargs='+', default=[], metavar='FOLDER', help='videos of your own (stages 2, 3)')
    add(
        '--quick',
        action='store_true',
        help='read only the headers of files; this finds neither bad labels nor truncated files',
    )
    add('--json', type=Path, metavar='FILE', help='write all problems to this file, unabridged')
    add('--num_workers', type=positive, default=os.cpu_count(), help='number of processes (default: one per core)')
    args = parser.parse_args(argv)
    plans = [
        ('static', plan_static, args.static_root),
        ('BL30K', plan_bl30k, args.bl_root),
        ('YouTubeVOS', plan_youtube, args.yv_root),
        ('DAVIS', plan_davis, args.davis_root),
        *(('videos', plan_own, root) for root in args.video_root),
    ]
    chosen = [(name, plan, root) for name, plan, root in plans if root is not None]
    if not chosen:
        parser.error('expected at least one of --static_root, --bl_root, --yv_root, --davis_root, --video_root')
    if args.json:
        check_writable(args.json)

    jobs: list[Job] = []
    problems: list[Problem] = []
    for name, plan, root in chosen:
        try:
            found = plan(root)
        except DataError as error:  # the data set is missing altogether
            found = [], [Problem(name, 'absent', str(root), str(error))]
        jobs += found[0]
        problems += found[1]
    problems += check_all(jobs, quick=args.quick, num_workers=args.num_workers)

    for problem in problems:
        print(problem)
    pairs = Counter()
    for job in jobs:
        pairs[job.dataset] += job.size
    print('\n'.join(table(pairs, problems, list(dict.fromkeys(name for name, *_ in chosen)))))
    if not problems:
        print('no problems found')
    if args.json:
        report = {'pairs': pairs, 'problems': [problem._asdict() for problem in problems]}
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')
    return 1 if problems else 0


if __name__ == '__main__':
    run_main(main)
