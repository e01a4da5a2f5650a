"""Fixtures of the tests of sessions."""

import numpy as np
import pytest

from inference.clip import Clip
from inference.session import Session
from tests.conftest import FRAMES


@pytest.fixture
def session(small_network, tmp_path) -> Session:
    return Session(small_network, Clip.of_images(FRAMES), tmp_path / 'session')


@pytest.fixture
def labels(first_mask) -> np.ndarray:
    return first_mask.numpy()
