"""Builds the network of a configuration."""

from collections.abc import Callable, Mapping

from torch import Tensor

from model.network import Network
from model.stcn import STCN
from model.stm import STM
from model.variants import STCNConfig, STMConfig

NETWORKS: dict[str, Callable[..., Network]] = {'stcn': STCN, 'stm': STM}


def build_network(
    config: STCNConfig | STMConfig,
    *,
    backbone_weights: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Network:
    """The network of a configuration, with new weights.

    ``backbone_weights``: a state dict for each name in ``config.backbones`` (``model.pretrained``); random by default.
    """
    return NETWORKS[config.arch](config, backbone_weights=backbone_weights)
