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
