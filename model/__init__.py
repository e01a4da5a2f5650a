"""The networks, their checkpoints, and the paper's equations on tensors. Names are imported at first use."""

from typing import TYPE_CHECKING

from util.lazy import lazy_names

if TYPE_CHECKING:
    from model.build import build_network
    from model.checkpoint import CheckpointError, load_network, save_network
    from model.network import Network, Query
    from model.stcn import STCN
    from model.stm import STM
    from model.variants import VARIANTS, STCNConfig, STMConfig

__all__ = [
    'STCN',
    'STM',
    'VARIANTS',
    'CheckpointError',
    'Network',
    'Query',
    'STCNConfig',
    'STMConfig',
    'build_network',
    'load_network',
    'save_network',
]

__getattr__ = lazy_names(
    __name__,
    {
        'STCN': 'stcn',
        'STM': 'stm',
        'VARIANTS': 'variants',
        'CheckpointError': 'checkpoint',
        'Network': 'network',
        'Query': 'network',
        'STCNConfig': 'variants',
        'STMConfig': 'variants',
        'build_network': 'build',
        'load_network': 'checkpoint',
        'save_network': 'checkpoint',
    },
)
