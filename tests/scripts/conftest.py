"""Fixtures of the tests of scripts: the networks of tests/inference, and one that other processes know, too."""

from pathlib import Path

import pytest

from model import save_network
from tests.conftest import make_small_network
from tests.inference.conftest import small_checkpoint, small_network  # noqa: F401


@pytest.fixture(scope='session')
def resnet_checkpoint(tmp_path_factory) -> Path:
    """For scripts in processes of their own, which do not know the tiny backbone, and for tests of what masks show."""
    path = tmp_path_factory.mktemp('weights') / 'resnet.pth'
    save_network(path, make_small_network())
    return path
