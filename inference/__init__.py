"""Streaming inference: a core takes a network and segments one frame after the other. Names are imported when used."""

from typing import TYPE_CHECKING

from util.lazy import lazy_names

if TYPE_CHECKING:
    from inference.config import InferenceConfig
    from inference.core import InferenceCore, InputError, load_model
    from inference.directions import Propagation
    from inference.ensemble import Ensemble, Member

__all__ = ['Ensemble', 'InferenceConfig', 'InferenceCore', 'InputError', 'Member', 'Propagation', 'load_model']

__getattr__ = lazy_names(
    __name__,
    {
        'InferenceConfig': 'config',
        'InferenceCore': 'core',
        'InputError': 'core',
        'load_model': 'core',
        'Ensemble': 'ensemble',
        'Member': 'ensemble',
        'Propagation': 'directions',
    },
)
