from model.checkpoint import CheckpointError, load_network, save_network
from model.stcn import STCN, Query
from model.variants import VARIANTS, STCNConfig

__all__ = ['STCN', 'VARIANTS', 'CheckpointError', 'Query', 'STCNConfig', 'load_network', 'save_network']
