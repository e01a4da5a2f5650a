"""Named network variants. A configuration is data: a checkpoint stores it, and it rebuilds the network."""
from dataclasses import dataclass


@dataclass(frozen=True)
class STCNConfig:
    """Everything that shapes an :class:`model.stcn.STCN`."""

    key_backbone: str = 'resnet50'
    value_backbone: str = 'resnet18'
    key_dim: int = 64                               # Ck
    value_dim: int = 512                            # Cv
    decoder_widths: tuple[int, int] = (512, 256)    # at strides 16 and 8 (also 4)
    single_object: bool = False                     # stage 0: no channel for the other objects' masks
    similarity: str = 'l2'                          # or 'dot', the ablation

    def __post_init__(self):
        # JSON and older checkpoints hand over lists.
        object.__setattr__(self, 'decoder_widths', tuple(self.decoder_widths))


VARIANTS = {
    'stcn': STCNConfig(),
    'stcn_s0': STCNConfig(single_object=True),
    'stcn_light': STCNConfig(
        key_backbone='mobilenet_v2', value_backbone='mobilenet_v2', value_dim=192, decoder_widths=(192, 64)),
}
