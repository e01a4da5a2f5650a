"""Fixtures of the tests of sessions, and smaller networks: what is tested here does not depend on the backbone."""

from pathlib import Path

import numpy as np
import pytest

from inference.clip import Clip
from inference.session import Session
from model import STCN, save_network
from tests.conftest import FRAMES, make_small_network
from tests.tiny import TINY


@pytest.fixture(scope='session')
def small_network() -> STCN:
    return make_small_network(key_backbone=TINY.key_backbone, value_backbone=TINY.value_backbone)


@pytest.fixture(scope='session')
def small_checkpoint(small_network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('weights') / 'tiny.pth'
    save_network(path, small_network)
    return path


@pytest.fixture
def session(small_network, tmp_path) -> Session:
    return Session(small_network, Clip.of_images(FRAMES), tmp_path / 'session')


@pytest.fixture
def labels(first_mask) -> np.ndarray:
    return first_mask.numpy()
