"""The place of this process among those that torchrun starts. Does not import torch, to save time on command lines."""

import os

from util.errors import UserError


def rank() -> int:
    """The number of this process, from 0 on. Raises ``UserError`` if the environment is not as torchrun sets it."""
    number = _number('RANK', 0)
    if number >= world_size():
        raise _misfit('RANK', f'a number below WORLD_SIZE={world_size()}')
    return number


def world_size() -> int:
    """How many processes there are. Raises ``UserError`` if the environment is not as torchrun sets it."""
    number = _number('WORLD_SIZE', 1)
    if number > 1 and (missing := [name for name in ('RANK', 'MASTER_ADDR', 'MASTER_PORT') if name not in os.environ]):
        raise _misfit('WORLD_SIZE', f'{", ".join(missing)} beside it')
    return max(1, number)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise _misfit(name, 'a number')
    return int(text)


def _misfit(name: str, expected: str) -> UserError:
    return UserError(
        f'{name}={os.environ.get(name)} in the environment: expected {expected}, as torchrun sets it. Start several '
        f'processes with torchrun, or unset {name} to start one.'
    )
