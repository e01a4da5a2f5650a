"""Networks, clips and small dataset roots that several tests use."""
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dataset.io import read_image, read_mask
from model import STCN, STCNConfig, save_network

REPOSITORY = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / 'golden'
sys.path.insert(0, str(GOLDEN))
from procedural_weights import make_state_dict  # noqa: E402


def state_dict(layout: str) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in make_state_dict(layout).items()}


@pytest.fixture(scope='session')
def golden_network() -> STCN:
    """The published architecture with the weights that the golden numbers were computed with."""
    network = STCN()
    network.load_state_dict(state_dict('layout_stcn.json'))
    return network.eval()


def make_small_network(**changes) -> STCN:
    torch.manual_seed(0)
    config = {'key_backbone': 'resnet18', 'key_dim': 16, 'value_dim': 32, 'decoder_widths': (32, 16)}
    network = STCN(STCNConfig(**(config | changes)))
    # Untrained, it would answer one half everywhere; this spreads its probabilities.
    torch.nn.init.normal_(network.decoder.pred.weight, std=0.3)
    return network.eval()


@pytest.fixture(scope='session')
def small_network() -> STCN:
    """A fast network whose masks are no good, but depend on everything that they should depend on."""
    return make_small_network()


@pytest.fixture(scope='session')
def small_checkpoint(small_network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('weights') / 'small.pth'
    save_network(path, small_network)
    return path


@pytest.fixture(scope='session')
def clip() -> list[Tensor]:
    """12 real frames, uint8 [3, 110, 182]."""
    return [torch.from_numpy(read_image(path)).permute(2, 0, 1) for path in sorted((GOLDEN / 'clip').iterdir())]


@pytest.fixture(scope='session')
def first_mask() -> Tensor:
    """Labels 0..3 for the clip's first frame."""
    return torch.from_numpy(read_mask(GOLDEN / 'first_mask.png'))


@pytest.fixture
def davis_root(tmp_path) -> Path:
    """A DAVIS 2017 root with two validation videos of 7 and 5 frames, every frame annotated."""
    base = tmp_path / 'DAVIS' / 'trainval'
    frames, masks = sorted((GOLDEN / 'clip').iterdir()), sorted((GOLDEN / 'appearing').iterdir())
    for name, numbers in (('dog', range(7)), ('goat', range(5, 10))):
        for folder in ('JPEGImages', 'Annotations'):
            (base / folder / '480p' / name).mkdir(parents=True)
        for index, number in enumerate(numbers):
            shutil.copy(frames[number], base / 'JPEGImages' / '480p' / name / f'{index:05d}.png')
            source = GOLDEN / 'first_mask.png' if index == 0 else masks[index % len(masks)]
            shutil.copy(source, base / 'Annotations' / '480p' / name / f'{index:05d}.png')
    (base / 'ImageSets' / '2017').mkdir(parents=True)
    (base / 'ImageSets' / '2017' / 'val.txt').write_text('dog\ngoat\n')
    return tmp_path / 'DAVIS'


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder with their content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f'{name}.npz') as arrays:
        return dict(arrays)
