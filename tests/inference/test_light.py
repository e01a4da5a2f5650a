"""The light network that comes with the project: its cost, its masks, and how it is loaded."""

import subprocess
import sys

import numpy as np
import torch

import hubconf
from dataset.io import list_frames, read_image, read_mask
from inference import InferenceCore, load_model
from inference.config import LIGHT_WEIGHTS, InferenceConfig
from model import VARIANTS
from scripts.benchmarks.harness import Case
from scripts.benchmarks.measures import measure_cost
from tests.conftest import EXAMPLES, REPOSITORY, needs_weights
from util.metrics import region_similarity


def test_it_is_light():
    light, full = (
        measure_cost(Case(network=name, device_name='cpu', config=InferenceConfig(mem_every=5)))[0]
        for name in ('stcn_light', 'stcn')
    )
    assert light['parameters (M)'] <= 8
    assert full['frame (G multiply-adds)'] >= 8 * light['frame (G multiply-adds)']


@needs_weights
def test_the_file_says_what_it_is():
    assert LIGHT_WEIGHTS.stat().st_size < 20e6
    assert load_model(device='cpu').config == VARIANTS['stcn_light']


def segment(clip, *, frames, **options):
    """J of every object in every frame but the first: [T - 1, K]."""
    core = InferenceCore(load_model(device='cpu'), **options)
    scores = []
    for path in list_frames(clip / 'JPEGImages')[:frames]:
        image = torch.from_numpy(read_image(path)).permute(2, 0, 1)
        first = clip / 'Annotations' / f'{path.stem}.png'
        mask = torch.from_numpy(read_mask(first)) if first.exists() else None
        labels = core.to_labels(core.step(image, mask)).numpy()
        if mask is None:
            truth = read_mask(clip / 'truth' / 'Annotations' / f'{path.stem}.png')
            scores.append([region_similarity(labels == label, truth == label) for label in core.objects])
    return np.array(scores)


@needs_weights
def test_it_follows_a_real_object():
    assert segment(EXAMPLES / 'blackswan', frames=12, size=240).mean() > 0.85


@needs_weights
def test_identities_survive_a_crossing():
    """The rider enters the swan's outline at frame 6 and has left most of it at frame 33."""
    scores = segment(EXAMPLES / 'crossing', frames=40)
    assert scores[-7:].mean(axis=0).min() > 0.6


@needs_weights
def test_the_hub_loads_a_checkout_beside_packages_of_the_same_names(tmp_path):
    """The program has a package, a module and a folder of these names. It imports its own ones, and the core works.

    It does so whether it imported them before or does so later: it goes both ways, one of them in a fork. The working
    directory is not the checkout.
    """
    (tmp_path / 'dataset').mkdir()
    (tmp_path / 'dataset' / '__init__.py').touch()
    (tmp_path / 'dataset' / 'mine.py').write_text('name = "my data"')
    (tmp_path / 'model.py').write_text('name = "my model"')
    (tmp_path / 'util').mkdir()
    (tmp_path / 'program.py').write_text(
        'import os, sys, torch, torchvision\n'
        'if child := os.fork():\n'
        '    assert os.waitpid(child, 0)[1] == 0\n'
        '    import dataset.mine, model, util\n'
        'options = {"source": "local", "trust_repo": True, "mem_every": 3}\n'
        'for top in (20, 30):\n'
        '    core = torch.hub.load(sys.argv[1], "stcn_light", top_k=top, **options)\n'
        'image, mask = torch.rand(3, 64, 96), torch.zeros(64, 96, dtype=torch.uint8)\n'
        'mask[:, :20] = 7\n'
        'print(core.step(image, mask).shape, core.objects, core.schedule.mem_every)\n'
        'core.step(image)\n'
        'mask[:20, 40:] = 9\n'
        'prob = core.step(image, mask)\n'
        'core.confidence(prob), core.remove(9)\n'
        'import dataset.mine, model, util\n'
        'found = core.to_labels(core.step(image, mask)).unique().tolist()\n'
        'print(found, core.config.top_k, dataset.mine.name, model.name, util.__path__)'
    )
    done = subprocess.run(
        [sys.executable, 'program.py', str(REPOSITORY)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    expected = f"torch.Size([2, 64, 96]) [7] 3\n[0, 7, 9] 30 my data my model _NamespacePath(['{tmp_path}/util'])\n"
    assert done.stdout == 2 * expected, done.stderr


def test_the_hub_has_random_weights():
    assert isinstance(hubconf.stcn_light(pretrained=False), InferenceCore)
