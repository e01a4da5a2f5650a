"""Validation: how well a network in training segments the videos that were held aside."""

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import closing

import numpy as np
import torch

from dataset.held_aside import HeldAside
from inference import InferenceCore
from inference.config import recommended_config
from inference.run import share
from inference.sources import DatasetSource
from inference.stream import TooLittleMemoryError, propagate
from model import Network
from training.report import Report
from training.run import Run
from training.state import TrainingState
from util.distributed import gather, rank, world_size
from util.errors import cause_of
from util.metrics import MEASURES, Scores, clear_void, score_frame, statistics
from util.stop import StopRequest

log = logging.getLogger(__name__)


class Validation:
    """Segments the videos held aside from time to time, scores them, and keeps the best network of the run.

    The core segments each video from the first annotation of each object. The checkpoint with which the training
    began may recommend its settings; otherwise they are the defaults. J and F are those of ``scripts/evaluate.py
    --dataset folder``: all annotated frames after an object's first one count, the last frame of a video included. The
    score of a video is the mean over its objects, and that of all videos the mean over all objects.

    A copy of the network is evaluated, with the averaged weights if there are some. So the network in training does
    not change, and no random number is drawn. Under torchrun the processes share the videos.

    Args:
        every: iterations from one evaluation to the next; the last iteration is evaluated, too.
        at_start: whether the network is also evaluated before the first iteration, to compare later ones with it.
        size: limit of the shorter side in pixels. Larger frames are reduced to it for the network; with 0, none are.
        best: the evaluation of the best network so far, see ``Run.best``. It does not count if it is of other videos
            or another size, since later evaluations cannot be compared with it.
    """

    def __init__(
        self,
        videos: Sequence[HeldAside],
        *,
        every: int,
        at_start: bool = False,
        size: int = 480,
        best: dict | None = None,
    ):
        self.videos, self.every, self.at_start, self.size = videos, every, at_start, size
        self.best = best
        if best and (best['size'], sorted(best['videos'])) != (size, sorted(video.name for video in videos)):
            log.info('the best network so far was found with other videos or another size, and does not count')
            self.best = None

    def due(self, iteration: int, *, last: bool) -> bool:
        """Whether the state after this many iterations is to be evaluated; ``last``: there are no more."""
        return last or iteration % self.every == 0 if iteration else self.at_start

    def run(self, state: TrainingState, run: Run, report: Report, stop: StopRequest) -> bool:
        """Evaluate the state; keep it in ``run`` if it is the best so far.

        Returns:
            Whether a signal ended it before it was complete. Nothing is reported or kept then.

        Raises:
            DataError: a frame or an annotation cannot be read any more.
            TooLittleMemoryError: there is too little memory.
        """
        begin = time.perf_counter()
        scores = self._scores(state.result(state.network.device).optimize_(), stop)
        if scores is None:
            return True
        found = {
            'iteration': state.iteration,
            'size': self.size,
            **mean_over_objects(scores.values()),
            'videos': {name: mean_over_objects([each]) for name, each in scores.items()},
        }
        if self.best is None or found['J&F'] > self.best['J&F']:
            run.keep_best(state.result(), found)
            self.best = found
        report.evaluation(found, self.best, seconds=time.perf_counter() - begin)
        return False

    def _scores(self, network: Network, stop: StopRequest) -> dict[str, Scores] | None:
        """The scores of each video, on every process; ``None`` if one of the processes was stopped."""
        own: dict[str, Scores] = {}
        stopped = False
        for video in share(self.videos, rank(), world_size()):
            own[video.name] = score_video(network, video, size=self.size, stop=stop)
            if stopped := stop.signal > 0:
                break
        every = gather(None if stopped else own)
        if None in every:
            return None
        scores = {name: each for part in every for name, each in part.items()}
        return {video.name: scores[video.name] for video in self.videos}


@torch.inference_mode()
def score_video(network: Network, video: HeldAside, *, size: int, stop: StopRequest) -> Scores:
    """J and F of every object of a video in every annotated frame after its first one; fewer after a signal."""
    config = recommended_config([network], size=size or None, enlarge=False)
    core = InferenceCore(network, config, num_frames=len(video.frames))
    scores: Scores = {}
    try:
        with closing(propagate(core, DatasetSource(video))) as segmented:
            for frame, found in zip(video.frames, segmented, strict=True):
                if stop.signal:
                    break
                if found.wanted:
                    truth, result = video.read_truth(frame), found.labels.cpu().numpy()
                    if video.void:
                        clear_void(truth, result)
                    score_frame(scores, frame.name, truth, result)
    except TooLittleMemoryError as error:
        raise TooLittleMemoryError(
            f'out of memory while {video.name} was evaluated; a smaller evaluation size needs less. A run '
            f'that is resumed continues from the checkpoint before it ({cause_of(error.__cause__ or error)})',
            options=['evaluate_size', 'resume'],
        ) from error
    return scores


def mean_over_objects(videos: Iterable[Scores]) -> dict[str, float]:
    """J, F and J&F: the means over all objects of the means over their frames. Objects without scores are left out."""
    objects = [measures for scores in videos for measures in scores.values() if measures['J']]
    means = {
        name: float(np.mean([statistics(list(measures[name].values()))['mean'] for measures in objects]))
        for name in MEASURES
    }
    return means | {'J&F': (means['J'] + means['F']) / 2}
