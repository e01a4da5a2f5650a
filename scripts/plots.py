"""Imports matplotlib for plots to files, without a screen."""

from types import ModuleType

from util.errors import MissingPackageError


def import_pyplot() -> ModuleType:
    """Import ``matplotlib.pyplot``. Call this before the work that leads to a plot, so that errors come early.

    Raises:
        MissingPackageError: matplotlib is not installed. The message says how to install it.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackageError(
            f'plots need the package matplotlib, which cannot be imported ({error}): '
            'pip install -r requirements-extras.txt'
        ) from error
    matplotlib.use('agg')
    from matplotlib import pyplot

    return pyplot
