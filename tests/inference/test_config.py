"""One configuration: its values, what checkpoints recommend, and flags that mean the same in every script."""

import argparse
import importlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import hubconf
from dataset.folder import folder
from inference import Ensemble, InferenceConfig, InferenceCore, Member, load_model
from inference.config import recommended_config
from inference.outputs import OutputError
from inference.run import run_dataset
from model import CheckpointError, load_network, save_network
from scripts.flags import FLAGS, inference_config, network_settings
from tests.conftest import REPOSITORY

SEGMENTING = {  # scripts that have all flags of inference, with what they demand
    'eval_davis': ['--output', 'out'],
    'eval_youtube': ['--output', 'out'],
    'scripts.eval_folder': ['--output', 'out', '--root', 'root'],
    'scripts.segment_video': ['--output', 'out', '--input', 'clip', '--mask', 'mask.png'],
    'scripts.web': [],
}
PARTLY = {
    'scripts.benchmarks.speed': ['top', 'include_last', 'mem_every', 'max_memory_frames'],
    'scripts.ablate': ['top', 'size'],
}


class Parsed(Exception):
    pass


@pytest.fixture
def parse(monkeypatch):
    """``parse(module, *words)``: the namespace that a script's ``main`` makes of its command line."""

    def parse(module, *words):
        original = argparse.ArgumentParser.parse_args
        seen = []

        def spied(parser, *args, **options):
            seen.append(original(parser, *args, **options))
            return seen[-1]

        with monkeypatch.context() as patch:
            patch.setattr(sys, 'argv', [module, *SEGMENTING.get(module, []), *words])
            patch.setattr(argparse.ArgumentParser, 'parse_args', spied)
            script = importlib.import_module(module)
            patch.setattr('scripts.flags.inference_config', lambda *args, **options: (_ for _ in ()).throw(Parsed))
            with pytest.raises(Parsed):
                script.main()
        return seen[0]

    return parse


def values_of(args: argparse.Namespace) -> InferenceConfig:
    args.given = set()
    return inference_config(args)


@pytest.mark.parametrize('module', [*SEGMENTING, 'scripts.benchmarks.speed'])
def test_flags_mean_the_same_in_every_script(parse, module):
    names = PARTLY.get(module, FLAGS)
    words = {
        'top': ['--top', '0'],
        'mem_every': ['--mem_every', 'none'],
        'max_memory_frames': ['--max_memory_frames', '0'],
        'include_last': ['--include_last'],
        'size': ['--size', '0', '360'],
        'kernel_sigma': ['--kernel_sigma', '0', '7'],
        'flip': ['--flip'],
        'amp': ['--amp'],
        'half_memory': ['--half_memory'],
        'exact': ['--exact'],
    }
    expected = {
        'top_k': None,
        'mem_every': None,
        'max_memory_frames': None,
        'include_last': True,
        'size': (None, 360),
        'kernel_sigma': (None, 7),
        'flip': True,
        'amp': True,
        'half_memory': True,
        'exact': True,
    }
    assert set(words) == set(FLAGS)
    args = parse(module, *(word for name in names for word in words[name]))
    assert values_of(args) == InferenceConfig(**{FLAGS[name].field: expected[FLAGS[name].field] for name in names})
    args = parse(module, '--top', '7', '--mem_every', '2', '--max_memory_frames', '3')
    config = values_of(args)
    assert (config.top_k, config.mem_every, config.max_memory_frames) == (7, 2, 3)


@pytest.mark.parametrize('module', [*SEGMENTING, *PARTLY])
def test_all_flags_of_inference_come_from_the_table(module):
    """A flag has the same help in every script, and no script has another flag of the same name."""
    command = [sys.executable, '-m', module, '--help']
    text = ' '.join(subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split())
    for name in PARTLY.get(module, FLAGS):
        assert f'--{name}' in text
        if module != 'scripts.ablate':
            assert FLAGS[name].help in text


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'top_k': 0}, 'top_k: expected a positive number or None, found 0'),
        ({'mem_every': -1}, 'mem_every: '),
        ({'size': (480, 0)}, 'size: '),
        ({'kernel_sigma': float('nan')}, 'kernel_sigma: '),
        ({'size': (1, 2, 3), 'kernel_sigma': (1, 2)}, r'one for each size \(3\), found 2'),
    ],
)
def test_wrong_values(values, message):
    with pytest.raises(ValueError, match=message):
        InferenceConfig(**values)


def test_there_is_one_way_to_say_a_thing():
    assert InferenceConfig(size=[480]) == InferenceConfig(size=480)
    assert InferenceConfig(size=[480, None], kernel_sigma=7) == InferenceConfig(size=(480, None), kernel_sigma=(7, 7))
    assert InferenceConfig(size=(480, 600), kernel_sigma=(None, None)) == InferenceConfig(size=(480, 600))
    config = InferenceConfig(size=(480, 600), kernel_sigma=(None, 7), flip=True)
    assert config.views == ((480, None, False), (480, None, True), (600, 7, False), (600, 7, True))
    assert config.of_view(config.views[3]) == InferenceConfig(size=600, kernel_sigma=7)


def test_a_core_and_an_ensemble_take_a_configuration(small_network, clip, first_mask):
    config = InferenceConfig(top_k=3, mem_every=2, size=48)
    cores = [
        InferenceCore(small_network, config),
        InferenceCore(small_network, top_k=3, mem_every=2, size=48),
        InferenceCore(small_network, InferenceConfig(top_k=3, mem_every=2), size=48),
        Ensemble.of([small_network], config),
        Ensemble([Member(small_network, size=48)], top_k=3, mem_every=2),
    ]
    found = [[core.step(image, first_mask if t == 0 else None) for t, image in enumerate(clip[:3])] for core in cores]
    for probs in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(probs, found[0], strict=True))
    for several in ({'size': (48, 64)}, {'flip': True}):
        with pytest.raises(ValueError, match='use an Ensemble to average several'):
            InferenceCore(small_network, **several)
    with pytest.raises(TypeError, match='topk'):
        InferenceCore(small_network, topk=3)


def test_a_size_that_does_not_enlarge(small_network, clip, first_mask):
    """Frames of 110 x 182 are reduced to a smaller size, but not enlarged to a larger one."""
    for size, other in ((110, None), (500, None), (48, 48)):
        bounded = InferenceCore(small_network, size=size, enlarge=False)
        plain = InferenceCore(small_network, size=other)
        for t, image in enumerate(clip[:2]):
            masks = [core.step(image, first_mask if t == 0 else None) for core in (bounded, plain)]
            assert torch.equal(*masks)


# What a checkpoint recommends


@pytest.fixture
def recommending(small_network, tmp_path):
    path = tmp_path / 'recommending.pth'
    save_network(path, small_network, recommended={'mem_every': 3, 'include_last': True, 'top': 0, 'size': 48})
    return path


def test_recommended_values_are_those_of_a_core(recommending, small_checkpoint):
    expected = InferenceConfig(mem_every=3, include_last=True, top_k=None, size=48, enlarge=False)
    network = load_model(recommending, device='cpu')
    assert InferenceCore(network).config == expected
    assert InferenceCore(network, size=96, mem_every=5).config == InferenceConfig(
        mem_every=5, include_last=True, top_k=None, size=96
    )
    assert InferenceCore(network, InferenceConfig()).config == InferenceConfig()
    if not torch.cuda.is_available():
        assert hubconf.stcn(str(recommending)).config == expected
        assert hubconf.stcn(str(recommending), top_k=20).config.top_k == 20
        assert hubconf.stcn_light().config == InferenceConfig(mem_every=2)  # what weights/README.md says
    other = load_network(small_checkpoint)
    assert recommended_config([network, network]) == expected
    assert recommended_config([network, other]) == InferenceConfig()  # they disagree
    assert other.recommended == {}


def test_flags_and_presets_come_before_recommendations(parse, recommending, caplog):
    caplog.set_level('INFO')
    network = load_network(recommending)

    def config(module, *words):
        args = parse(module, *words)
        args.given = {word.removeprefix('--') for word in words if word.startswith('--')}
        return inference_config(args, [network])

    for module in SEGMENTING:
        bound = 64 if module == 'scripts.segment_video' else None
        assert config(module) == InferenceConfig(
            mem_every=3, include_last=True, top_k=None, size=48, enlarge=False, max_memory_frames=bound
        )
        assert caplog.messages[-1] == ('recommended by the checkpoint: --mem_every 3 --include_last --top 0 --size 48')
        assert config(module, '--mem_every', '5', '--size', '64') == InferenceConfig(
            mem_every=5, include_last=True, top_k=None, size=64, max_memory_frames=bound
        )
        assert caplog.messages[-1] == 'recommended by the checkpoint: --include_last --top 0'


@pytest.mark.parametrize(
    'recommended', [{'topk': 3}, {'mem_every': -1}, {'include_last': 1}, {'size': '480'}, {'size': [1, 2]}, 3]
)
def test_other_recommendations_are_refused(small_network, tmp_path, recommended):
    save_network(tmp_path / 'plain.pth', small_network)
    with pytest.raises(CheckpointError, match='recommends'):
        save_network(tmp_path / 'a.pth', small_network, recommended=recommended)
    content = torch.load(tmp_path / 'plain.pth', weights_only=True)
    torch.save(content | {'recommended': recommended}, tmp_path / 'b.pth')
    with pytest.raises(CheckpointError, match=r'b\.pth: recommends .*; expected some of mem_every'):
        load_network(tmp_path / 'b.pth')


def test_files_without_recommendations_stay_as_they_are(small_network, tmp_path):
    save_network(tmp_path / 'plain.pth', small_network)
    assert set(torch.load(tmp_path / 'plain.pth', weights_only=True)) == {'config', 'network'}


# Folders that earlier versions wrote


def test_folders_of_before_go_on(folder_root, small_network, small_checkpoint, tmp_path):
    """A run continues the folders of an earlier version, which used direct convolutions."""
    args = argparse.Namespace(model=[str(small_checkpoint)], compile=False)
    plain = {'top': 20, 'mem_every': 5, 'include_last': False, 'max_memory_frames': None, 'size': 32, 'amp': False}
    several = plain | {'top': 0, 'mem_every': 0, 'size': [32, 48], 'kernel_sigma': [0, 7], 'flip': True}
    for name, written, config in (
        ('plain', plain, InferenceConfig(size=32, exact=True)),
        (
            'several',
            several,
            InferenceConfig(
                top_k=None, mem_every=None, size=(32, 48), kernel_sigma=(None, 7.0), flip=True, exact=True
            ),
        ),
    ):
        rest = network_settings(args) | {'root': str(folder_root)}
        run = ([small_network], folder(folder_root), tmp_path / name, config)
        run_dataset(*run, settings=rest)
        settings = tmp_path / name / 'settings.json'
        settings.write_text(json.dumps(written | rest, indent=2))
        (tmp_path / name / 'cat' / '3.png').unlink()
        with pytest.raises(OutputError, match='exact was True, is False'):
            run_dataset(*run[:3], replace(config, exact=False), settings=rest)
        summary = run_dataset(*run, settings=rest)
        assert (summary.skipped, summary.videos, summary.failures) == (1, 1, {})
