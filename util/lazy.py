"""Packages that import their names when these are used (PEP 562), so that ``--help`` does not wait for torch."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], object]:
    """The ``__getattr__`` of a package. ``modules`` gives the module of each public name.

    A name is looked up once, and is an attribute of the package from then on.
    """

    def __getattr__(name: str) -> object:
        if name not in modules:
            raise AttributeError(f'module {package!r} has no attribute {name!r}')
        value = getattr(import_module(f'{package}.{modules[name]}'), name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__
