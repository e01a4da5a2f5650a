"""Networks, clips and small dataset roots that several tests use. No test can reach the internet."""

import json
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dataset.io import read_image, read_mask
from inference.config import LIGHT_WEIGHTS
from model import STCN, VARIANTS, STCNConfig, save_network

REPOSITORY = Path(__file__).parents[1]
EXAMPLES = REPOSITORY / 'examples'
GOLDEN = Path(__file__).parent / 'golden'
FRAMES = sorted((GOLDEN / 'clip').iterdir())
APPEARING = {2: 0, 5: 4, 9: 7}  # label -> frame, of GOLDEN / 'appearing'
# How far probabilities may differ that were computed in two ways, such as frames one by one and in a batch: sums are
# added up in another order, which depends on the processor. Tests that take the same way twice ask for equal bits.
ROUNDING = {'atol': 1e-4, 'rtol': 0}
needs_weights = pytest.mark.skipif(not LIGHT_WEIGHTS.exists(), reason='weights/stcn_light.pth is not there')
sys.path.insert(0, str(GOLDEN))
from procedural_weights import make_state_dict  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """Keep this process, and every Python that it starts, from reaching other machines.

    See tests/offline/sitecustomize.py. The workers of pytest-xdist are among those that it starts.
    """
    if hasattr(config, 'workerinput'):
        return
    for name in [name for name in os.environ if name.lower() in ('http_proxy', 'https_proxy', 'all_proxy')]:
        del os.environ[name]
    guard = REPOSITORY / 'tests' / 'offline'
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(guard), os.environ.get('PYTHONPATH')]))
    with tempfile.NamedTemporaryFile(prefix='stcn_network_', suffix='.log', delete=False) as log:
        os.environ['STCN_TEST_NETWORK_LOG'] = log.name
    runpy.run_path(str(guard / 'sitecustomize.py'))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests begin first: else one process would end with them, while the others have nothing left to do."""
    items.sort(key=lambda item: item.get_closest_marker('long') is None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, 'workerinput'):
        return
    attempts = Path(os.environ['STCN_TEST_NETWORK_LOG'])
    if found := attempts.read_text():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f'\nthe network was asked for, against tests/offline/sitecustomize.py:\n{found}', file=sys.stderr)
    attempts.unlink()


def state_dict(layout: str) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in make_state_dict(layout).items()}


@pytest.fixture(autouse=True)
def threads_as_before():
    """Scripts set the number of threads of this process; every test begins with that of OMP_NUM_THREADS."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    """Compute in one thread, since two threads wait for each other on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope='module')
def roots(tmp_path_factory) -> dict[str, Path]:
    from tests.trees import make_roots

    return make_roots(tmp_path_factory.mktemp('roots'))


@pytest.fixture
def learn(roots, tmp_path, monkeypatch):
    """Runs train.py in this process and an empty folder, with a tiny network; returns the exit status."""
    import train
    from tests.tiny import TINY, training_flags

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(VARIANTS, 'tiny', TINY)

    def learn(*flags):
        return train.main([*training_flags(roots), '--num_workers', '0', *map(str, flags)])

    return learn


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
    # An untrained network gives a probability of one half everywhere; this spreads the probabilities.
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
    return make_davis_val(tmp_path)


def make_davis_val(root: Path) -> Path:
    """Make a DAVIS 2017 root with two validation videos of 7 and 5 frames, every frame annotated."""
    base = root / 'DAVIS' / 'trainval'
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
    return root / 'DAVIS'


@pytest.fixture
def youtube_root(tmp_path) -> Path:
    """Two videos whose frames have even numbers (0, 2, ..., 22). For each object, meta.json lists its first frame and
    then the multiples of four. In the second video, objects appear from the third frame on, and frames are upright
    and larger."""
    root = tmp_path / 'YouTube'
    meta = {}
    for video, offset, size in (('0a1b', 0, (182, 110)), ('ff02', 2, (150, 263))):
        images = root / 'all_frames/valid_all_frames/JPEGImages' / video
        annotations = root / 'valid/Annotations' / video
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        for number, path in enumerate(FRAMES[: 12 - 4 * (offset > 0)]):
            Image.open(path).convert('RGB').resize(size).save(images / f'{2 * number:05d}.jpg', quality=95)
        for label, first in APPEARING.items():
            if first + offset >= len(list(images.iterdir())):
                continue
            mask = Image.open(GOLDEN / 'appearing' / f'{first:05d}.png')
            mask.resize(size, Image.Resampling.NEAREST).save(annotations / f'{2 * (first + offset):05d}.png')
            frames = [
                f'{2 * number:05d}'
                for number in range(first + offset, len(list(images.iterdir())))
                if number == first + offset or number % 2 == 0
            ]
            objects = meta.setdefault(video, {'objects': {}})['objects']
            objects[str(label)] = {'category': 'person', 'frames': frames}
    (root / 'valid' / 'meta.json').write_text(json.dumps({'videos': meta}))
    return root


@pytest.fixture
def folder_root(tmp_path) -> Path:
    """Two videos: in "cat" (.jpeg), all objects have masks in the first frame; in "dog" (.PNG), they appear later and
    are corrected."""
    root = tmp_path / 'mine'
    for video in ('cat', 'dog'):
        (root / 'JPEGImages' / video).mkdir(parents=True)
        (root / 'Annotations' / video).mkdir(parents=True)
    for number, path in enumerate(FRAMES[:5]):
        Image.open(path).convert('RGB').save(root / 'JPEGImages/cat' / f'{number}.jpeg')
        shutil.copy(path, root / 'JPEGImages/dog' / f'frame{number + 8}.PNG')
    shutil.copy(GOLDEN / 'first_mask.png', root / 'Annotations/cat/0.png')
    shutil.copy(GOLDEN / 'appearing/00000.png', root / 'Annotations/dog/frame9.png')
    correction = np.zeros((110, 182), np.uint8)
    correction[20:60, 30:80] = 2
    correction[70:90, 100:] = 255
    Image.fromarray(correction).save(root / 'Annotations/dog/frame11.png')
    return root


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder with their content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f'{name}.npz') as arrays:
        return dict(arrays)
