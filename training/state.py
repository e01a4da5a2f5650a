"""The state of a training run: everything that changes during training and is saved in a checkpoint."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import VARIANTS, CheckpointError, Network, build_network, load_network
from model.checkpoint import network_from_checkpoint
from model.pretrained import imagenet_weights
from training.average import WeightAverage

log = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """Network, optimizer, gradient scaler, the finished iterations, and an average of the weights if one is wanted.

    Nothing else has to be kept: learning rate, loss and max-skip are functions of the iteration, and every random
    choice about a sample is a function of (seed, epoch, index). So there is no scheduler and no random state.
    """

    network: Network
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    iteration: int = 0
    average: WeightAverage | None = None

    def content(self) -> dict:
        """The content of a checkpoint, to be written with ``torch.save``.

        ``model.load_network`` can load this file; it takes the averaged weights if there are some.
        """
        content: dict[str, Any] = {
            'iteration': self.iteration,
            'config': dataclasses.asdict(self.network.config),
            'network': self.network.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'scaler': self.scaler.state_dict(),
            'recommended': dict(self.network.recommended),
        }
        if self.average:
            content |= {
                'average': content['network'] | self.average.weights,
                'average_updates': self.average.updates,
            }
        return content

    def result(self, device: torch.device | str = 'cpu') -> Network:
        """A copy of the network to evaluate, in eval mode: with the averaged weights if there are some."""
        return network_from_checkpoint(self.content(), 'this training', device=device, widen=None)

    def restore(self, content: dict, path: str | Path) -> None:
        """Take over optimizer, scaler, iteration and average from a training checkpoint.

        This code or the authors' published code (the release) may have written it. The optimizer's moments are
        assigned to the parameters by position; rates and decay are not taken over. A file of the release has no
        scaler, so that the scaler has to find its scale again. If an average is wanted and the file has none, the
        average starts from the weights in the file.

        Raises:
            CheckpointError: something in the file is missing or does not fit the network.
        """
        iteration = content.get('iteration', content.get('it'))
        if not isinstance(iteration, int) or iteration < 0 or 'optimizer' not in content:
            raise CheckpointError(
                f'{path}: expected a training checkpoint with an iteration and an optimizer, found '
                f'{", ".join(map(str, list(content)[:5]))}; a file with weights only can start a stage but '
                'cannot continue one'
            )
        self.iteration = iteration
        try:
            moments = dict(content['optimizer']['state'])
            for index, parameter in enumerate(self.network.parameters() if moments else ()):
                _check_moments(moments[index], index, parameter)
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {'state': moments})
        except (TypeError, LookupError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f'{path}: its optimizer does not fit the network: {error!r}') from error
        if self.scaler.is_enabled():
            self._restore_scaler(content.get('scaler'), path)
        if self.average and 'average' in content:
            self.average.restore(content, path)
        elif self.average:
            log.info(
                '%s: holds no average of the weights; the average starts from the weights of iteration %d',
                path,
                iteration,
            )
        elif 'average' in content:
            log.info('%s: its average of the weights is not continued', path)

    def _restore_scaler(self, found: dict | None, path: str | Path) -> None:
        if found is None or found == {}:
            log.warning(
                '%s: holds no gradient scaler; a new one may skip some steps until it has found its scale', path
            )
            return
        expected = self.scaler.state_dict()
        try:
            fits = (
                found.keys() == expected.keys()
                and found['scale'] > 0
                and all(0 <= value < (2**31 if isinstance(value, int) else math.inf) for value in found.values())
            )
            if not fits:
                raise ValueError(f'expected something like {expected}, found {found}')
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f'{path}: its gradient scaler is not understood: {error}') from error
        self.scaler.load_state_dict(found)


def _check_moments(moments: dict, index: int, parameter: Tensor) -> None:
    """Check the moments of a parameter, since Adam would accept wrong ones and fail at the first step."""
    float(moments['step'])
    for name in ('exp_avg', 'exp_avg_sq'):
        if moments[name].shape != parameter.shape or not moments[name].is_floating_point():
            raise ValueError(
                f'{name} of parameter {index} has shape {tuple(moments[name].shape)} and type {moments[name].dtype}, '
                f'but the parameter has shape {tuple(parameter.shape)} and type {parameter.dtype}'
            )


def initial_network(
    *,
    arch: str | None,
    single_object: bool,
    similarity: str | None = None,
    checkpoint: tuple[dict, Path] | None = None,
    weights: str | Path | None = None,
    backbone_files: Sequence[str | Path] | None = None,
) -> Network:
    """The network to train, on the CPU.

    Args:
        arch: a name in ``VARIANTS``; ``None`` for the variant in the file, or for ``'stcn'`` if there is no file.
        single_object: whether the network is a single-object one, as trained in stage 0.
        similarity: ``'l2'`` or ``'dot'``; ``None`` takes that of ``arch`` or, without ``arch``, of the file.
        checkpoint: the content of a training checkpoint to continue, and its path.
        weights: a file with weights to start from, used if no ``checkpoint`` is given. Its averaged weights are taken
            if it has some. A network of stage 0 is widened for other stages.
        backbone_files: ImageNet weights for a new network; ``['none']`` for random ones, ``None`` for torchvision's.

    Raises:
        CheckpointError: the file is unusable, or its network is not the one that was asked for.
    """
    changes: dict[str, Any] = {'single_object': single_object} | ({'similarity': similarity} if similarity else {})
    path: str | Path
    if checkpoint:
        content, path = checkpoint
        network = network_from_checkpoint(content, path, widen=None, averaged=False)
    elif weights:
        path = weights
        network = load_network(path, widen=None if single_object else 'orthogonal')
    else:
        config = dataclasses.replace(VARIANTS[arch or 'stcn'], **changes)
        files = backbone_files or ()
        pretrained = {} if list(files) == ['none'] else imagenet_weights(config.backbones, files)
        return build_network(config, backbone_weights=pretrained)

    if network.config.single_object != single_object:
        raise CheckpointError(
            f'{path}: holds a multi-object network; stage 0 trains a single-object network, from which the other '
            'stages start'
            if single_object
            else f'{path}: holds a single-object network of stage 0; other stages can start from it, but cannot '
            'continue it'
        )
    expected = dataclasses.replace(VARIANTS[arch], **changes) if arch else network.config
    if network.config != expected:
        raise CheckpointError(
            f'{path}: holds {network.config}, expected the variant {arch!r}, {expected}. If you name no variant, the '
            'network in the file is trained as it is'
        )
    if similarity and network.similarity != similarity:
        raise CheckpointError(f'{path}: holds a network of similarity {network.similarity!r}, expected {similarity!r}')
    return network


def initial_state(
    network: Network,
    *,
    device: torch.device,
    amp_dtype: torch.dtype | None = None,
    average: float | None = None,
    compiled: bool = False,
    checkpoint: tuple[dict, Path] | None = None,
) -> TrainingState:
    """The network on its device with the paper's Adam (F.1), continued where a training checkpoint ended.

    Args:
        amp_dtype: the type for mixed precision, ``None`` for full precision. With float16, a gradient scaler is used.
        average: decay of the average of the weights; ``None`` for no average.
        compiled: compile encoders and decoder with ``torch.compile``.
        checkpoint: the content of a training checkpoint to continue, and its path.
    """
    network.to(device).to(memory_format=torch.channels_last)
    state = TrainingState(
        network,
        torch.optim.Adam(network.parameters(), betas=(0.9, 0.999), weight_decay=1e-7, fused=True),
        torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16),
        average=None if average is None else WeightAverage(network, average),
    )
    if compiled:
        network.compile_()
    if checkpoint:
        state.restore(*checkpoint)
        log.info('continuing after iteration %d of %s', state.iteration, checkpoint[1])
    return state
