"""Tests of the benchmarks: the baseline is the paper's network, and operations, bytes and memory are counted right."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dataset.io import DataError
from inference.core import InferenceCore
from model import VARIANTS
from scripts.benchmarks import confidence, directions, loader, measures, memory, memory_model, speed, training_step
from scripts.benchmarks.baseline import ConcatenatedMemory, StraightforwardSTCN
from scripts.benchmarks.roofline import Allocations, Work
from tests.conftest import EXAMPLES, golden, needs_weights, state_dict
from tests.forks import Forking
from tests.helpers import Here, assert_close, assert_same_objects, normalised, unpadded_pixels
from tests.tiny import TINY
from tests.trees import make_roots
from util.errors import MissingPackageError


@pytest.fixture(scope='module')
def straightforward():
    network = StraightforwardSTCN()
    network.load_state_dict(state_dict('layout_stcn.json'))
    return network.eval()


@torch.inference_mode()
def test_baseline_is_the_published_network(straightforward, clip, first_mask):
    expected = golden('network')
    image = normalised(clip[0])
    query = straightforward.encode_query(image)
    masks = torch.stack([first_mask[:96, :176] == label for label in (1, 2, 3)])[None].float()
    key, value = straightforward.encode_memory(image, query, masks)
    assert_close(value[0, :, ::4], expected['value_3obj'])
    memory = ConcatenatedMemory(top_k=20)
    memory.add(key[0], value[0])
    query = straightforward.encode_query(normalised(clip[5]))
    assert_same_objects(straightforward.decode(memory.read(query.key[0])[None], query).sigmoid(), expected)


def test_baseline_propagates_as_published(straightforward, clip, first_mask):
    expected = unpadded_pixels(golden('propagation')['prob_3obj_every5_nolast'])
    core = InferenceCore(straightforward)
    core.memory = ConcatenatedMemory(top_k=20)
    for t, image in enumerate(clip):
        prob = core.step(image, first_mask if t == 0 else None, [1, 2, 3] if t == 0 else None, last=t == 11)
        assert_close(prob[:, 1::2, 1::2], expected[:, t], tolerance=5e-3)


def test_work():
    a, b, rows = torch.zeros(8, 32), torch.zeros(32, 16), torch.tensor([[0, 1], [2, 3]])
    image, kernel = torch.zeros(1, 4, 10, 10), torch.zeros(6, 4, 3, 3)
    weights, places = torch.ones(2, 2), torch.zeros(1, 4, 3, dtype=torch.long)
    with torch.inference_mode(), Work() as work:
        (a @ b).T[:1]
        F.conv2d(image, kernel, padding=1)
        image.flatten(2).gather(2, places)
        F.embedding_bag(rows, b, mode='sum', per_sample_weights=weights)
    product, convolution, gather, *_, bag = work.operations
    assert product == (8 * 32 * 16, 4 * (8 * 32 + 32 * 16 + 8 * 16))
    assert convolution == (100 * 4 * 6 * 9, 4 * (400 + 216 + 600))
    assert gather == (0, 12 * (4 + 8 + 4))
    assert bag[0] == 4 * 16
    assert work.seconds(1e30, 4.0) == pytest.approx(work.bytes / 4)


def test_allocations():
    x = torch.ones(2**18)  # 1 MiB, which is not counted
    with Allocations() as allocations:
        y = x + 1
        z = (y * 2).view(2, -1)
        del y
        z.mul_(2)
        x + 3
    assert allocations.alive == z.nbytes
    assert allocations.peak == 2 * z.nbytes


def test_memory_model_grows_with_the_memory(monkeypatch):
    monkeypatch.setitem(VARIANTS, 'tiny', TINY)
    one, two = (memory_model.inference_peak('tiny', 64, 96, 2, frames) for frames in (20, 40))
    added = 20 * 4 * 6 * 4 * (2 * TINY.value_dim + TINY.key_dim + 1)
    assert two - one == pytest.approx(added, rel=0.1)
    assert memory_model.inference_peak('tiny', 64, 96, 2, 40, amp=True) < two
    kept, again = (
        memory_model.training_peak(3, 2, arch='tiny', crop_size=64, recompute=recompute) for recompute in (False, True)
    )
    assert again < kept


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_gpu_takes_what_the_model_says(capsys):
    """Every row runs in a process that may take 11 GB."""
    assert memory.main(['--check']) == 0
    rows = [line.split('|') for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) > 10
    assert all(0.5 < float(row[4]) < 1.6 for row in rows)


@pytest.mark.parametrize(
    'flags',
    [
        ['--measure', 'stages', 'read', 'core', 'growth', '--memory_frames', '5', '--objects', '1', '2'],
        ['--measure', 'cost', 'video', '--video_frames', '6', '--objects', '1', '--max_memory_frames', '2'],
        ['--measure', 'read', 'core', '--top', '0', '--memory_frames', '2', '--objects', '2'],
        ['--measure', 'read', 'core', '--model', 'SMALL', '--memory_frames', '5', '--objects', '2'],
        ['--measure', 'video', '--arch', 'stm_light', '--top', '0', '--include_last', '--video_frames', '6'],
    ],
)
def test_measurements(tmp_path, capsys, small_checkpoint, monkeypatch, flags):
    monkeypatch.setitem(VARIANTS, 'tiny', TINY)
    # One of the two that measure videos does so in processes of their own.
    monkeypatch.setattr(measures, 'ProcessPoolExecutor', Here if '--arch' in flags else Forking)
    if 'growth' in flags:
        pytest.importorskip('matplotlib')
    arch = [] if '--arch' in flags else ['--arch', 'stcn_light' if 'video' in flags else 'tiny']
    flags = [str(small_checkpoint) if flag == 'SMALL' else flag for flag in flags]
    flags = [*flags, *arch, '--size', '64x96', '--repeat', '1', '--device', 'cpu']
    plot = ['--plot', str(tmp_path / 'plot.png')] if 'growth' in flags else []
    assert speed.main([*flags, '--json', str(tmp_path / 'found.json'), *plot]) == 0
    found = json.loads((tmp_path / 'found.json').read_text())
    for name in ('read', 'core'):
        assert all(row['largest difference'] < 1e-4 for row in found.get(name, []))
    assert (tmp_path / 'plot.png').exists() == ('growth' in flags)
    printed = capsys.readouterr().out
    for name in found.keys() - {'machine', 'precision'}:
        assert f'\n{name}\n' in printed
        assert all(value >= 0 for row in found[name] for value in row.values() if not isinstance(value, str))


def test_a_plot_that_cannot_be_made_is_refused_before_anything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    monkeypatch.setattr(measures, 'measure_growth', None)
    with pytest.raises(MissingPackageError, match=r'plots need .*matplotlib.*requirements-extras\.txt'):
        speed.main(['--measure', 'growth', '--plot', str(tmp_path / 'plot.png')])


def test_what_has_no_straightforward_formulation_is_left_out(capsys, caplog):
    flags = ['--arch', 'stm_light', '--size', '64x96', '--objects', '1', '--memory_frames', '2', '--repeat', '1']
    assert speed.main(['--measure', 'read', 'core', 'growth', *flags]) == 0
    assert caplog.text.count('nothing to compare with') == 2
    printed = capsys.readouterr().out
    assert '\ngrowth\n' in printed
    assert '\nread\n' not in printed


def test_an_unknown_variant_is_refused():
    with pytest.raises(SystemExit, match=r"error: --arch: expected some of stcn, .*, found 'vgg'"):
        speed.main(['--arch', 'stcn', 'vgg'])


def test_every_measurement_can_be_asked_for():
    assert {f'measure_{name}' for name in speed.MEASURES} == {
        name for name in vars(measures) if name.startswith('measure_')
    }


def test_training_step(capsys, tmp_path):
    static_root = make_roots(tmp_path)['static_root']
    size = ['--crop_size', '64', '--batch_size', '1', '--steps', '1', '--num_workers', '0']
    flags = ['--static_root', str(static_root), '--arch', 'stcn_light', *size, '--recompute', '--device', 'cpu']
    assert training_step.main(flags) == 0
    assert 'plain / ours' in capsys.readouterr().out


def test_loader(one_thread, capsys, tmp_path):
    static_root = make_roots(tmp_path)['static_root']
    flags = ['--static_root', str(static_root), '--davis_root', str(tmp_path), '--crop_size', '64', '--count', '2']
    assert loader.main(flags) == 0
    assert re.search(r'^static, .* usual .* ms .* ours .* ms .*x$', capsys.readouterr().out, re.MULTILINE)


def test_confidence_of_a_network_and_what_corrections_do(roots, small_checkpoint, capsys):
    """J is 1 when every frame is corrected, in whichever order: that of confidence, of time or of J."""
    davis = roots['davis_root'] / '2017' / 'trainval'
    folders = ['--images', davis / 'JPEGImages' / '480p', '--annotations', davis / 'Annotations' / '480p']
    flags = [*folders, '--video', 'bear', '--model', small_checkpoint, '--size', 64, '--device', 'cpu']
    confidence.main([*map(str, flags), '--corrections', '7', '--target', '1', '--num_threads', '1'])
    lines = capsys.readouterr().out.splitlines()
    curves = [[float(value) for value in part.split()] for part in lines[-1].split('   ')[-1].split(';')]
    assert len(curves) == 3
    for curve in curves:
        assert len(curve) == 8  # without corrections, with one ... with all of the seven frames that are scored
        assert curve[0] == curves[0][0] < curve[-1] == 100


@needs_weights
def test_directions_of_a_video_and_of_its_reverse(tmp_path, capsys):
    """Forwards through the frames in reverse order is backwards; the ways that go both ways are the same in both."""
    places = np.linspace(0, 39, 5).round().astype(int)
    for name, order in (('there', places), ('back', places[::-1])):
        for folder, source, suffix in (('images', 'JPEGImages', 'jpg'), ('masks', 'truth/Annotations', 'png')):
            (tmp_path / folder / name).mkdir(parents=True)
            for number, place in enumerate(order):
                frame = EXAMPLES / 'crossing' / source / f'{place:05d}.{suffix}'
                shutil.copy(frame, tmp_path / folder / name / f'{number}.{suffix}')
    folders = ['--images', tmp_path / 'images', '--annotations', tmp_path / 'masks']
    flags = ['--video', 'there', 'back', '--size', 96, '--device', 'cpu', '--num_threads', '1']
    assert directions.main([*map(str, folders), *map(str, flags)]) == 0
    lines = capsys.readouterr().out.splitlines()
    there, back, mean = ([float(value) for value in line.split()[1:]] for line in lines[-3:])
    first, middle, last, both, nearer = there
    # The pass that waits for the other is stored at the working size and with one byte for a probability.
    assert back == pytest.approx([last, middle, first, both, nearer], abs=0.5)
    assert mean == pytest.approx([(a + b) / 2 for a, b in zip(there, back, strict=True)], abs=0.11)
    assert len(set(there)) == 5
    assert min(there) > 20


@needs_weights
def test_directions_need_ground_truth(tmp_path, capsys):
    folders = ['--images', EXAMPLES / 'crossing' / 'JPEGImages', '--annotations', EXAMPLES / 'crossing']
    with pytest.raises(DataError, match='expected masks of four or more frames'):
        directions.main([*map(str, folders), '--video', '.', '--size', '96', '--device', 'cpu'])


def test_area_under_curve_and_ranks():
    assert confidence.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]
    found = np.array([False, True, True, False])
    assert confidence.area_under_curve(np.array([0.1, 0.9, 0.8, 0.2]), found) == 1
    assert confidence.area_under_curve(np.array([0.9, 0.1, 0.2, 0.8]), found) == 0
    assert confidence.area_under_curve(np.array([0.5, 0.5, 0.9, 0.7]), found) == pytest.approx(0.625)
