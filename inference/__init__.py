"""Streaming inference: a network, and a core that takes one frame after the other."""

from pathlib import Path

import torch

from inference.core import InferenceCore, InputError
from inference.ensemble import Ensemble, Member
from model import Network, load_network
from util.distributed import choose_device

__all__ = ['Ensemble', 'InferenceCore', 'InputError', 'Member', 'load_model']

LIGHT_WEIGHTS = Path(__file__).resolve().parents[1] / 'weights' / 'stcn_light.pth'


def load_model(path: str | Path = LIGHT_WEIGHTS, *, device: str | torch.device | None = None) -> Network:
    """The network of a checkpoint (published, our own, or by default the light one shipped here), ready to infer.

    Batch norm is folded (``Network.optimized``); to train or save it, take ``model.load_network``.

    Args:
        device: by default the GPU, if there is one.

    Raises:
        CheckpointError: the file is missing or unusable.
    """
    return load_network(path, device=choose_device(device)).optimized()
