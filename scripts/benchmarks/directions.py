"""Measure what propagation in both directions gives, on videos with ground truth.

    python scripts/benchmarks/directions.py --images ../DAVIS/2017/trainval/JPEGImages/480p \\
        --annotations ../DAVIS/2017/trainval/Annotations/480p --video kite-surf parkour --size 240

Each video is segmented from its first mask forwards, its middle mask both ways, its last mask backwards, and its
first and last masks both ways. The last is done twice: as the scripts do it, where the results of both passes are
blended, and with the result of the pass whose mask is nearer. A line has the J&F in percent of each way: the mean
over the objects of the first mask, in all frames with ground truth except those three.
"""

import sys
import tempfile
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.benchmarks.videos import find_videos, video_parser
from scripts.flags import inference_config, load_networks, parse_flags
from util.cli import run_main
from util.metrics import MEASURES, labels_in

if TYPE_CHECKING:
    from inference import InferenceConfig
    from inference.sources import Direction
    from model import Network


class Way(NamedTuple):
    """Which masks are given, in which direction they are propagated, and what becomes of two results for a frame."""

    given: tuple[str, ...]
    direction: 'Direction'
    nearer: bool = False  # the result of the pass with the nearer mask counts, instead of the blend


WAYS = {
    'first mask, forwards': Way(('first',), 'forward'),
    'middle mask, both ways': Way(('middle',), 'both'),
    'last mask, backwards': Way(('last',), 'backward'),
    'first and last, both ways': Way(('first', 'last'), 'both'),
    'first and last, nearer pass only': Way(('first', 'last'), 'both', nearer=True),
}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_flags(video_parser(__doc__), argv=argv)
    videos = find_videos(args)
    networks = load_networks(args)
    config = inference_config(args, networks)
    print(f'{"video":20} ' + '  '.join(WAYS), flush=True)
    rows = []
    for name, (images, annotations) in videos.items():
        rows.append(measure(images, annotations, networks, config))
        print(line(name, rows[-1]), flush=True)
    print(line('mean', np.mean(rows, axis=0)))
    return 0


def line(name: str, values: Iterable[float]) -> str:
    """A row of the table."""
    return f'{name:20} ' + '  '.join(f'{100 * value:{len(way)}.1f}' for way, value in zip(WAYS, values, strict=True))


def measure(images: Path, annotations: Path, networks: Sequence['Network'], config: 'InferenceConfig') -> list[float]:
    """J&F of each way for one video, in [0, 1].

    Raises:
        DataError: the video cannot be read, or fewer than four of its frames have ground truth.
    """
    from dataset.io import DataError, fit_mask, read_mask
    from dataset.mask_files import GivenMask
    from inference import Ensemble
    from inference.directions import Annotations, Propagation
    from inference.sources import FolderSource

    class NearerMask(Annotations):
        """Gives all of the weight to the pass whose mask is nearer to the frame."""

        def nearness(self, frame: int, label: int | None) -> float:
            return float(super().nearness(frame, label) >= 0.5)

    source = FolderSource(images, fps=Fraction(25))
    files = {number: annotations / f'{path.stem}.png' for number, path in enumerate(source.paths)}
    files = {number: file for number, file in files.items() if file.exists()}
    numbers = list(files)
    if len(numbers) < 4:
        raise DataError(f'{annotations}: expected masks of four or more frames of {images}, found {len(numbers)}')
    truth = {number: fit_mask(read_mask(file), source.shape(), file) for number, file in files.items()}
    chosen = {'first': numbers[0], 'middle': numbers[len(numbers) // 2], 'last': numbers[-1]}
    scored = truth.keys() - chosen.values()

    def make_core() -> Ensemble:
        return Ensemble.of(networks, config, num_frames=source.frames)

    means = []
    for way in WAYS.values():
        source.annotate([GivenMask((files[chosen[mask]],), frame=chosen[mask]) for mask in way.given])
        values = []
        with tempfile.TemporaryDirectory() as folder:
            propagation = Propagation(make_core, source, way.direction, Path(folder) / 'waiting')
            if way.nearer:
                propagation.annotations = NearerMask(source.annotations())
            for found in propagation.frames():
                if found.wanted and found.number in scored:
                    expected, result = truth[found.number], found.labels.cpu().numpy()
                    for label in labels_in(truth[chosen['first']]):
                        values += [score(expected == label, result == label) for score in MEASURES.values()]
        means.append(float(np.mean(values)))
    return means


if __name__ == '__main__':
    run_main(main)
