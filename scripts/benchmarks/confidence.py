"""Measure how well the confidence of a core predicts its errors, on videos with ground truth.

    python scripts/benchmarks/confidence.py --images ../DAVIS/2017/trainval/JPEGImages/480p \\
        --annotations ../DAVIS/2017/trainval/Annotations/480p --video kite-surf parkour
    python scripts/benchmarks/confidence.py ... --corrections 5

Each video is segmented from the first mask of every object. An object-frame is an object in a frame. For each video,
a line says how well the confidence finds the object-frames with J below 0.5 (area under the ROC curve; 0.5 is chance)
and how well it orders all object-frames by J (rank correlation).

With --corrections N, a user is simulated who corrects a frame, after which the later frames are segmented again,
until the mean of J over all frames is --target. A corrected frame has a J of 1. The corrections are counted for three
ways to choose the frames: the frame that the report suggests first; frames at even distances; and the frame with the
lowest J, for which the ground truth has to be known.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from inference.report import least_sure
from scripts.benchmarks.videos import find_videos, video_parser
from scripts.flags import inference_config, load_networks, parse_flags
from util.cli import not_negative, run_main
from util.metrics import VOID, clear_void, region_similarity

if TYPE_CHECKING:
    from dataset.held_aside import HeldAside
    from inference import InferenceConfig
    from model import Network

FAILED = 0.5  # an object-frame with a lower J is an error to find


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)

    from dataset.held_aside import open_video

    videos = [open_video(*folders) for folders in find_videos(args).values()]
    networks = load_networks(args)
    config = inference_config(args, networks)
    every: list[tuple[float, float]] = []
    print('video                 object-frames     J  below 0.5  AUROC  rank correlation', flush=True)
    simulations = [Simulation(networks, config, video) for video in videos]
    for simulation in simulations:
        simulation.segment()
        pairs = simulation.pairs()
        every += pairs
        print(f'{simulation.video.name:20} {quality(pairs)}', flush=True)
    print(f'{"all":20} {quality(every)}')
    if args.corrections:
        print(f'\ncorrections to a mean J of {args.target:g}, of at most {args.corrections}')
        print('video                 suggested  even distances  lowest J   J of each, correction by correction')
        for simulation in simulations:
            curves = [simulation.corrected(way, args.corrections, args.target) for way in WAYS]
            counts = [str(len(curve) - 1) if curve[-1] >= args.target else f'>{args.corrections}' for curve in curves]
            shown = '; '.join(' '.join(f'{100 * value:.1f}' for value in curve) for curve in curves)
            print(f'{simulation.video.name:20} {counts[0]:>10} {counts[1]:>15} {counts[2]:>9}   {shown}', flush=True)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = video_parser(__doc__)
    add = parser.add_argument
    add('--corrections', type=not_negative, default=0, metavar='N', help='most corrections of a video (default: 0)')
    add('--target', type=float, default=0.9, help='mean J at which the corrections end (default: 0.9)')
    return parse_flags(parser, argv=argv)


class Simulation:
    """Segments a video and simulates a user who corrects frames with the ground truth.

    Attributes:
        J, confidence: frame -> label -> value, for the frames with ground truth after the object's first one.
    """

    def __init__(self, networks: Sequence['Network'], config: 'InferenceConfig', video: 'HeldAside'):
        self.networks, self.config, self.video = networks, config, video
        self.corrected_frames: set[int] = set()
        self.J: dict[int, dict[int, float]] = {}
        self.confidence: dict[int, dict[int, float]] = {}

    def segment(self, start: int = 0) -> None:
        """Segment and score the frames from ``start`` on; earlier frames keep their scores."""
        import torch

        from inference import Ensemble

        frames = self.video.frames
        core = Ensemble.of(self.networks, self.config, num_frames=len(frames))
        for t, frame in enumerate(frames):
            wanted = frame.wanted and t >= start
            mask, objects = self._given(t, core.objects)
            step = core.schedule.peek(annotated=mask is not None, wanted=wanted, last=t == len(frames) - 1)
            image = torch.from_numpy(self.video.read_image(frame)).permute(2, 0, 1) if step.compute else None
            prob = core.step(image, mask, objects, wanted=wanted, last=t == len(frames) - 1)
            if prob is None:
                continue
            self._score(t, core.to_labels(prob).cpu().numpy(), core.confidence(prob))

    def _given(self, t: int, known: list[int]) -> tuple:
        """The mask and the objects of an annotated or corrected frame, for ``step``; otherwise ``None``."""
        import torch

        frame = self.video.frames[t]
        if frame.mask is None and t not in self.corrected_frames:
            return None, None
        truth = self.video.read_truth(frame)
        if self.video.void:
            truth[truth == VOID] = 0
        new = list(frame.objects or ())
        if t in self.corrected_frames:
            return torch.from_numpy(truth), list(dict.fromkeys([*known, *new]))
        truth[~np.isin(truth, new)] = 0
        return torch.from_numpy(truth), new

    def _score(self, t: int, labels: np.ndarray, confidence: dict[int, float]) -> None:
        frame = self.video.frames[t]
        truth = self.video.read_truth(frame)
        if self.video.void:
            clear_void(truth, labels)
        old = [label for label in confidence if label not in (frame.objects or ())]
        corrected = t in self.corrected_frames  # its result would be the correction itself, at full size
        self.J[t] = {label: 1.0 if corrected else region_similarity(truth == label, labels == label) for label in old}
        self.confidence[t] = {label: confidence[label] for label in old}

    def pairs(self) -> list[tuple[float, float]]:
        """Confidence and J of every object-frame."""
        return [(self.confidence[t][label], J) for t, values in self.J.items() for label, J in values.items()]

    def mean_J(self) -> float:
        """The mean J over all object-frames; corrected ones count 1."""
        return float(np.mean([J for values in self.J.values() for J in values.values()]))

    def corrected(self, way: str, limit: int, target: float) -> list[float]:
        """The mean J with 0, 1, 2 ... corrections, until it reaches ``target`` or there are ``limit`` corrections."""
        before = dict(self.J), dict(self.confidence)
        curve = [self.mean_J()]
        while curve[-1] < target and len(curve) <= limit:
            chosen = WAYS[way](self, len(curve))
            start = min(chosen ^ self.corrected_frames, default=len(self.video.frames))
            self.corrected_frames = chosen
            self.segment(start)
            curve.append(self.mean_J())
        self.corrected_frames = set()
        self.J, self.confidence = before
        return curve


def by_confidence(simulation: Simulation, count: int) -> set[int]:
    sure = {
        t: min(values.values())
        for t, values in simulation.confidence.items()
        if values and t not in simulation.corrected_frames
    }
    return simulation.corrected_frames | set(least_sure(sure, 1))


def at_even_distances(simulation: Simulation, count: int) -> set[int]:
    frames = [t for t, values in simulation.J.items() if values]
    # The frame before the first one is annotated. The time after the last correction is as long as between two.
    return {frames[place - 1] for place in np.linspace(0, len(frames) + 1, count + 2).round().astype(int)[1:-1]}


def by_ground_truth(simulation: Simulation, count: int) -> set[int]:
    J = {t: np.mean(list(values.values())) for t, values in simulation.J.items() if values}
    return simulation.corrected_frames | {min(J, key=J.__getitem__)}


WAYS = {'suggested': by_confidence, 'even': at_even_distances, 'lowest': by_ground_truth}
"""The ways to choose the frames to correct: ``(simulation, number of corrections in all) -> frames``."""


def quality(pairs: Sequence[tuple[float, float]]) -> str:
    """Format the columns of a line of the table."""
    confidence, J = np.array(pairs).T
    failed = J < FAILED
    area = f'{area_under_curve(-confidence, failed):.3f}' if 0 < failed.sum() < len(J) else '-'
    order = f'{np.corrcoef(ranks(confidence), ranks(J))[0, 1]:.3f}' if np.ptp(J) and np.ptp(confidence) else '-'
    return f'{len(J):>14} {100 * J.mean():>5.1f} {failed.sum():>10} {area:>6} {order:>17}'


def area_under_curve(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive has a higher score than a negative; a tie counts one half."""
    count = positive.sum()
    return float((ranks(score)[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def ranks(values: np.ndarray) -> np.ndarray:
    """The ranks of values: 1 for the smallest; equal values share the mean of their ranks."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[where]


if __name__ == '__main__':
    run_main(main)
