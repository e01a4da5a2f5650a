"""``python tests/tiny.py SCRIPT FLAGS``: a script with the variant ``tiny``, for tests that need a process of its own.

Its backbone ``tiny``, which importing this module makes known, has four convolutions. With the 40 of a MobileNetV2,
most of the time of a short training would go into saving and reading a thousand small tensors.

STCN_TEST_SAVE_OFTEN: the state of a segmentation is saved five times a second.
STCN_TEST_DIE_AT: the iteration at which the process is killed, unless torchrun has restarted it.
"""

import itertools
import os
import runpy
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from torch import Tensor, nn

from inference import continuing
from model import VARIANTS, STCNConfig
from model.backbones import BACKBONES, Backbone, Features
from training import loop


class TinyClassifier(nn.Module):
    def __init__(self, weights: None = None):
        super().__init__()
        channels = (3, 16, 16, 16, 32)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in itertools.pairwise(channels)
        )


class TinyFeatures(Features):
    def __init__(self, network: TinyClassifier, *, layers: tuple[str, ...] = ()):
        super().__init__()
        self.layers = network.layers

    @property
    def input_conv(self) -> nn.Conv2d:
        return self.layers[0][0]

    def after_input(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f4 = self.layers[1](self.layers[0][1:](x))
        f8 = self.layers[2](f4)
        return self.layers[3](f8), f8, f4


BACKBONES['tiny'] = Backbone(TinyClassifier, TinyFeatures, (32, 16, 16))
TINY = STCNConfig('tiny', 'tiny', key_dim=16, value_dim=32, decoder_widths=(32, 16))
SAVE_OFTEN = 0.2, 1  # seconds, and the share of the time
hardest_fraction = loop.hardest_fraction


def training_flags(roots: dict[str, Path]) -> list[str]:
    """The flags of train.py for the trees of ``tests.trees.make_roots``."""
    places = [part for name, root in roots.items() for part in (f'--{name}', str(root))]
    return ['--arch', 'tiny', '--backbone_weights', 'none', '--crop_size', '48', '-b', '2', '--device', 'cpu', *places]


def die_at(iteration: int, *bootstrap: int) -> float:
    if iteration == int(os.environ['STCN_TEST_DIE_AT']) and os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') == '0':
        os.kill(os.getpid(), signal.SIGKILL)
    return hardest_fraction(iteration, *bootstrap)


if __name__ == '__main__':
    VARIANTS['tiny'] = TINY
    if 'STCN_TEST_SAVE_OFTEN' in os.environ:
        continuing.SAVE_SECONDS, continuing.SHARE = SAVE_OFTEN
    if 'STCN_TEST_DIE_AT' in os.environ:
        loop.hardest_fraction = die_at
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name='__main__')
