"""Streaming inference: a network, and a core that takes one frame after the other."""

from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from inference.config import InferenceConfig
from util.files import known_content

if TYPE_CHECKING:
    import torch

    from inference.core import InferenceCore, InputError
    from inference.ensemble import Ensemble, Member
    from model import Network

__all__ = ['Ensemble', 'InferenceConfig', 'InferenceCore', 'InputError', 'Member', 'load_model']

LIGHT_WEIGHTS = Path(__file__).resolve().parents[1] / 'weights' / 'stcn_light.pth'
MODULES = {
    'InferenceCore': 'inference.core',
    'InputError': 'inference.core',
    'Ensemble': 'inference.ensemble',
    'Member': 'inference.ensemble',
}


def __getattr__(name: str) -> object:
    """Imports what needs torch once it is asked for: a script that checks its flags has no use for it yet."""
    if name in MODULES:
        return getattr(import_module(MODULES[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def load_model(path: 'str | Path' = LIGHT_WEIGHTS, *, device: 'str | torch.device | None' = None) -> 'Network':
    """The network of a checkpoint (published, our own, or by default the light one shipped here), ready to infer.

    Batch norm is folded (``Network.optimized``); to train or save it, take ``model.load_network``. What the checkpoint
    recommends (``Network.recommended``) is what a core around the network does unless it is told otherwise.

    Args:
        device: by default the GPU, if there is one.

    Raises:
        CheckpointError: the file is missing or unusable.
    """
    from model import CheckpointError, load_network
    from util.distributed import choose_device

    device = choose_device(device)
    try:
        return load_network(path, device=device).optimized()
    except CheckpointError as error:
        if isinstance(error.__cause__, UnpicklingError) and (found := known_content(path)):
            raise CheckpointError(f'{path}: expected a checkpoint, found {found}') from error
        raise
