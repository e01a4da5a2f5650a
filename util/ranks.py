"""The place of this process among those that torchrun starts. Without torch, so that a command line knows it, too."""

import os


def rank() -> int:
    """The number of this process, from 0 on."""
    return int(os.environ.get('RANK', 0))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get('WORLD_SIZE', 1))
