"""Named network variants. A configuration is data: a checkpoint stores it, and it rebuilds the network."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from model.similarity import check_similarity


@dataclass(frozen=True)
class STCNConfig:
    """Everything that shapes an :class:`model.stcn.STCN`."""

    key_backbone: str = 'resnet50'
    value_backbone: str = 'resnet18'
    key_dim: int = 64  # Ck
    value_dim: int = 512  # Cv
    decoder_widths: tuple[int, int] = (512, 256)  # at stride 16, and at strides 8 and 4
    single_object: bool = False  # stage 0: no channel for the other objects' masks
    similarity: str = 'l2'  # or 'dot', the ablation
    aspp_dim: int | None = None  # channels of an ASPP after the key backbone; None: no ASPP
    fusion_attention: bool = True  # CBAM between the two ResBlocks of the feature fusion
    arch: str = field(default='stcn', init=False)

    def __post_init__(self):
        check_similarity(self.similarity)
        # JSON and older checkpoints hand over lists.
        object.__setattr__(self, 'decoder_widths', tuple(self.decoder_widths))

    @property
    def backbones(self) -> tuple[str, str]:
        """Names in ``model.backbones.BACKBONES``."""
        return self.key_backbone, self.value_backbone


@dataclass(frozen=True)
class STMConfig:
    """Everything that shapes an :class:`model.stm.STM`."""

    query_backbone: str = 'resnet50'
    memory_backbone: str = 'resnet50'
    key_dim: int = 128  # Ck
    value_dim: int = 512  # Cv
    decoder_width: int = 256
    single_object: bool = False  # stage 0: no convolution of the other objects' masks
    similarity: str = 'dot'  # or 'l2', the ablation
    arch: str = field(default='stm', init=False)

    def __post_init__(self):
        check_similarity(self.similarity)

    @property
    def backbones(self) -> tuple[str, str]:
        """Names in ``model.backbones.BACKBONES``."""
        return self.query_backbone, self.memory_backbone


VARIANTS: dict[str, STCNConfig | STMConfig] = {
    'stcn': STCNConfig(),
    'stcn_s0': STCNConfig(single_object=True),
    'stcn_no_attention': STCNConfig(fusion_attention=False),
    'stcn_light': STCNConfig(
        key_backbone='mobilenet_v2', value_backbone='mobilenet_v2', value_dim=192, decoder_widths=(192, 64)
    ),
    # The same with more layers and a wider view in the key encoder.
    'stcn_light_dilated': STCNConfig(
        key_backbone='mobilenet_v2_dilated', value_backbone='mobilenet_v2', value_dim=192, decoder_widths=(192, 64)
    ),
    # The other two networks of the paper's ensemble (supplementary E).
    'stcn_wide': STCNConfig(key_backbone='wide_resnet50_2'),
    'stcn_wide_aspp': STCNConfig(key_backbone='wide_resnet50_2', aspp_dim=256),
    # The baseline, and one that costs about what stcn_light does.
    'stm': STMConfig(),
    'stm_light': STMConfig(
        query_backbone='mobilenet_v2', memory_backbone='mobilenet_v2', value_dim=192, decoder_width=64
    ),
}

CONFIGS: dict[str, type[STCNConfig] | type[STMConfig]] = {'stcn': STCNConfig, 'stm': STMConfig}


def config_from(stored: Mapping) -> STCNConfig | STMConfig:
    """Rebuild a configuration from its ``dataclasses.asdict``. Older files have no ``arch``, and are of an STCN.

    Raises:
        KeyError: an unknown ``arch``.
        TypeError: a field that the configuration does not have.
        ValueError: an unknown similarity.
    """
    fields = dict(stored)
    return CONFIGS[fields.pop('arch', 'stcn')](**fields)
