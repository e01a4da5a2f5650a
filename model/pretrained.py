"""ImageNet weights for the backbones: torchvision's, or files that the user brings."""

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from model.backbones import BACKBONES
from model.checkpoint import CheckpointError, differences, read_checkpoint

PATIENCE = 15  # seconds without an answer from the server


def imagenet_weights(names: Iterable[str], files: Iterable[str | Path] = ()) -> dict[str, dict[str, Tensor]]:
    """The state dict of torchvision's classifier for each backbone name; see ``STCN(backbone_weights=...)``.

    A file is used for the backbone whose tensors it has, whatever its name. A backbone without a file gets
    IMAGENET1K_V1, which the paper used, from torch's cache or downloaded into it.

    Raises:
        CheckpointError: a file fits none of the backbones, or a download failed.
    """
    names = sorted(set(names))
    weights: dict[str, dict[str, Tensor]] = {}
    for file in files:
        state = read_checkpoint(file)
        fitting = [name for name in BACKBONES if not differences(_classifier(name), state)]
        if not set(fitting) & set(names):
            raise CheckpointError(
                f"{file}: expected torchvision's weights of {' or '.join(names)}, found those of "
                f'{" or ".join(fitting) or "no known backbone"}'
            )
        weights |= dict.fromkeys(fitting, state)
    return {name: weights[name] if name in weights else _download(name) for name in names}


def _classifier(name: str) -> nn.Module:
    with torch.device('meta'):
        return BACKBONES[name].classifier(weights=None)


def _download(name: str) -> dict[str, Tensor]:
    weights = torchvision.models.get_model_weights(BACKBONES[name].classifier).IMAGENET1K_V1
    place = Path(torch.hub.get_dir()) / 'checkpoints' / os.path.basename(weights.url)
    try:
        with _impatient():
            return weights.get_state_dict(progress=False, check_hash=True, map_location='cpu', weights_only=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f'{place}: ImageNet weights of {name} could not be loaded: {error}. Put the file {weights.url} there, or '
            "give it as a file of backbone weights; 'none' in place of a file starts from random weights.",
            options=['backbone_weights'],
        ) from error


@contextmanager
def _impatient() -> Iterator[None]:
    """In its block, a server that does not answer is given up after ``PATIENCE`` seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
