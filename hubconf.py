"""Entry points of ``torch.hub``: ``torch.hub.load(CHECKOUT, 'stcn_light', source='local')``."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path

dependencies = ['torch', 'torchvision', 'numpy', 'PIL', 'cv2']

CHECKOUT = Path(__file__).resolve().parent
PACKAGES = ('dataset', 'inference', 'model', 'util')  # our packages that a core needs


def _others_have(package: str) -> bool:
    """Whether the program that loads this file has another package or module of this name, imported or on its path."""
    module = sys.modules.get(package)
    if module is not None:
        file = getattr(module, '__file__', None)
        return file is None or not Path(file).resolve().is_relative_to(CHECKOUT)
    elsewhere = [folder for folder in sys.path if Path(folder or '.').resolve() != CHECKOUT]
    return PathFinder.find_spec(package, elsewhere) is not None


def _take_out() -> dict:
    """Remove all modules with the names of our packages from ``sys.modules``, and return them."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition('.')[0] in PACKAGES}


@contextmanager
def _beside_others() -> Iterator[None]:
    """In the block, imports find our packages; after it the program finds its own packages of the same names again.

    Our modules keep working, since they import everything that they need at their beginning. If the program has no
    packages of these names, ours stay in ``sys.modules``.
    """
    if not any(map(_others_have, PACKAGES)):
        yield
        return
    others = _take_out()
    try:
        yield
    finally:
        _take_out()
        sys.modules.update(others)


with _beside_others():
    from inference import InferenceCore, load_model
    from model import STCN, VARIANTS


def stcn_light(pretrained: bool = True, **options) -> InferenceCore:
    """A core with the light network that comes with this repository.

    ``options`` are those of ``InferenceCore``, for example ``top_k=50``. ``pretrained=False`` gives random weights.
    """
    network = load_model(exact=options.get('exact', False)) if pretrained else STCN(VARIANTS['stcn_light']).eval()
    return InferenceCore(network, **options)


def stcn(checkpoint: str, **options) -> InferenceCore:
    """A core with the network of a checkpoint file, a published one or our own.

    ``options`` are those of ``InferenceCore``. Those not given have the values that the checkpoint recommends.
    """
    return InferenceCore(load_model(checkpoint, exact=options.get('exact', False)), **options)
