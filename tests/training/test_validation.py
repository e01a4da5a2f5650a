"""Tests of train.py --evaluate_every: its scores, the best network, and that it does not change the training."""

import os
import re
import shutil
import signal

import numpy as np
import pytest
import torch

from dataset.folder import folder
from dataset.held_aside import HeldAside, find_held_aside, open_video
from dataset.io import DataError, read_mask
from dataset.video import read_split
from inference import InferenceCore, load_model
from inference.run import run_dataset
from model import load_network, save_network
from model.checkpoint import read_checkpoint
from scripts.evaluate import evaluate
from tests.conftest import FRAMES
from tests.kill_runs import digest
from tests.trees import write, write_video
from training import evaluation
from training.evaluation import mean_over_objects, score_video
from util.stop import StopRequest

pytestmark = pytest.mark.usefixtures('one_thread')

YOUTUBE_VIDEO = read_split('youtube_vos_train')[0]
HELD = ('--hold_aside', 'bear', YOUTUBE_VIDEO)


def checkpoint(name: str, iteration: int) -> dict:
    return read_checkpoint(f'saves/{name}/checkpoint_{iteration:08d}.pth')


def best(name: str) -> dict:
    return read_checkpoint(f'saves/{name}/best.pth')


@pytest.fixture
def appearing(tmp_path) -> HeldAside:
    """Twelve real frames, every second one annotated: object 2 from the third on, object 5 from the seventh on."""
    for index, path in enumerate(FRAMES):
        (tmp_path / 'images' / 'clip').mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / 'images' / 'clip')
        mask = np.zeros((110, 182), np.uint8)
        if index >= 2:
            mask[20:60, 30 + 2 * index : 80] = 2
        if index >= 6:
            mask[50:90, 70:120] = 5
        if index % 2 == 0:
            write(tmp_path / 'masks' / 'clip' / f'{path.stem}.png', mask, palette=True)
    return open_video(tmp_path / 'images' / 'clip', tmp_path / 'masks' / 'clip')


@pytest.fixture
def scored(monkeypatch):
    """Replaces segmenting by given values of J&F, one for each video that is scored."""

    def replace(*values):
        left = iter(values)

        def score(network, video, *, size, stop):
            value = next(left)
            return {1: {'J': {'0': value}, 'F': {'0': value}}}

        monkeypatch.setattr(evaluation, 'score_video', score)

    return replace


# Scores


def test_scores_are_those_of_the_scripts(appearing, tmp_path):
    """The same scores as evaluate.py gives for a folder of these frames, with masks where objects first appear."""
    names = [(frame.name, frame.objects, frame.wanted) for frame in appearing.frames]
    objects = {'00002': (2,), '00006': (5,)}
    assert names == [(path.stem, objects.get(path.stem), i % 2 == 0) for i, path in enumerate(FRAMES) if i >= 2]

    root = tmp_path / 'root'
    shutil.copytree(tmp_path / 'images', root / 'JPEGImages')
    shutil.copytree(tmp_path / 'masks', root / 'Annotations')
    shutil.copytree(root, tmp_path / 'given')
    for path in (tmp_path / 'given' / 'Annotations' / 'clip').iterdir():
        if path.stem == '00006':
            write(path, np.where(appearing.read_truth(appearing.frames[4]) == 5, 5, 0).astype(np.uint8), palette=True)
        elif path.stem != '00002':
            path.unlink()
    network = load_model(device='cpu')
    run_dataset([network], folder(tmp_path / 'given'), tmp_path / 'out')
    expected = evaluate(tmp_path / 'out', root, dataset='folder')

    scores = score_video(network, appearing, size=480, stop=StopRequest())
    assert list(scores[5]['J']) == ['00008', '00010']
    found = mean_over_objects([scores])
    assert found == {'J': expected['J']['mean'], 'F': expected['F']['mean'], 'J&F': expected['J&F']}
    assert 0.1 < found['J'] < 0.9


def test_void_pixels_do_not_count(appearing, tmp_path):
    """Label 255 beside others is no object, neither given nor scored."""
    without = score_video(load_model(device='cpu'), appearing, size=480, stop=StopRequest())
    for path in (tmp_path / 'masks' / 'clip').iterdir():
        mask = read_mask(path)
        mask[:10] = 255
        write(path, mask, palette=True)
    video = open_video(tmp_path / 'images' / 'clip', tmp_path / 'masks' / 'clip')
    assert video.void
    assert [frame.objects for frame in video.frames if frame.objects] == [(2,), (5,)]
    found = score_video(load_model(device='cpu'), video, size=480, stop=StopRequest())
    assert found.keys() == without.keys() == {2, 5}
    assert found[2]['J'].keys() == without[2]['J'].keys()
    assert mean_over_objects([found])['J'] == pytest.approx(mean_over_objects([without])['J'], abs=0.05)


def test_all_objects_count_alike():
    one = {1: {'J': {'a': 0.5, 'b': 0.7}, 'F': {'a': 0.1, 'b': 0.3}}}
    two = {1: {'J': {'a': 0.9}, 'F': {'a': 0.8}}, 3: {'J': {'a': 1.0}, 'F': {'a': 0.9}}, 4: {'J': {}, 'F': {}}}
    found = mean_over_objects([one, two])
    assert found == pytest.approx({'J': 2.5 / 3, 'F': 1.9 / 3, 'J&F': 2.2 / 3})


@pytest.mark.parametrize(('size', 'expected'), [(480, 110), (110, 110), (0, 110), (64, 64)])
def test_frames_are_reduced_never_enlarged(appearing, small_network, monkeypatch, size, expected):
    heights = set()
    encode = small_network.encode_query

    def record(image):
        heights.add(image.shape[-2])
        return encode(image)

    monkeypatch.setattr(small_network, 'encode_query', record)
    score_video(small_network, appearing, size=size, stop=StopRequest())
    assert heights == {expected + -expected % 16}  # frames are 110 high; padded to multiples of 16


# Training


@pytest.mark.parametrize('average', [(), ('--average', 0.5)], ids=['weights', 'average'])
def test_training_does_not_notice(learn, tmp_path, caplog, average):
    caplog.set_level('INFO')
    flags = ('--stage', 3, '-i', 5, '--save_every', 1, '--lr', 1e-3, *HELD, *average)
    learn('--id', 'without', *flags)
    assert learn('--id', 'with', *flags, '--evaluate_every', 2) == 0
    for iteration in (3, 4, 5):
        assert digest(checkpoint('with', iteration)) == digest(checkpoint('without', iteration))

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / 'saves' / 'with')).Reload()
    lines = [line for line in caplog.messages if line.startswith('  ')]
    for name in ('bear', YOUTUBE_VIDEO):
        curves = [events.Scalars(f'evaluation/{name}/{measure}') for measure in 'JF']
        assert [[point.step for point in curve] for curve in curves] == [[2, 4, 5], [2, 4, 5]]
        assert [line for line in lines if line.startswith(f'  {name}')] == [
            f'  {name:<10}  J {j.value:5.2f}  F {f.value:5.2f}' for j, f in zip(*curves, strict=True)
        ]
    kept = best('with')
    assert kept['evaluation']['size'] == 480
    assert kept['evaluation']['videos'].keys() == {'bear', YOUTUBE_VIDEO}
    means = {point.step: point.value for point in events.Scalars('evaluation/all/J&F')}
    assert 100 * kept['evaluation']['J&F'] == pytest.approx(max(means.values()))
    step = kept['evaluation']['iteration']
    said = f'evaluation after iteration {step}: J&F {means[step]:.2f} in '
    assert [line for line in caplog.messages if line.startswith(said) and line.endswith(f'after iteration {step}')]


def test_a_stage_0_network_is_evaluated(learn):
    assert learn('--stage', 0, '--id', 'a', '-i', 1, '--evaluate_every', 5, '--hold_aside', 'bear') == 0
    assert best('a')['evaluation']['iteration'] == 1
    assert load_network('saves/a/best.pth', widen=None).config.single_object


def test_the_best_is_kept_also_after_a_resume(learn, scored, monkeypatch, caplog):
    caplog.set_level('INFO')
    flags = ('--stage', 3, '--lr', 1e-3, '--average', 0.5, '--hold_aside', 'bear', '--evaluate_every', 2, '--resume')
    scored(0.3, 0.7, 0.7)
    assert learn('--id', 'a', *flags, '-i', 5) == 0
    expected = checkpoint('a', 4)['average']
    assert best('a')['evaluation'] == {
        'iteration': 4,
        'size': 480,
        **dict.fromkeys(('J', 'F', 'J&F'), 0.7),
        'videos': {'bear': dict.fromkeys(('J', 'F', 'J&F'), 0.7)},
    }
    for content in (best('a')['network'], load_network('saves/a/best.pth').state_dict()):
        assert digest(content) == digest(expected)

    scored(0.6)
    assert learn('--id', 'a', *flags, '-i', 6) == 0
    assert best('a')['evaluation']['iteration'] == 4
    assert re.search(r'after iteration 6: J&F 60.00 in \d s; the best is 70.00 after iteration 4\n', caplog.text)
    scored(0.6, 0.8)  # the scores of iteration 6, evaluated again, and of iteration 7
    assert learn('--id', 'a', *flags, '-i', 7) == 0
    assert best('a')['evaluation']['iteration'] == 7

    scored(0.5)
    assert learn('--id', 'a', *flags, '-i', 7, '--evaluate_size', 64) == 0
    assert 'found with other videos or another size, and does not count' in caplog.text
    assert (best('a')['evaluation']['J&F'], best('a')['evaluation']['size']) == (0.5, 64)
    content = best('a')
    del content['evaluation']
    torch.save(content, 'saves/a/best.pth')
    scored(0.4)
    assert learn('--id', 'a', *flags, '-i', 7, '--evaluate_size', 64) == 0
    assert "best.pth: holds no evaluation ('evaluation'); the next one replaces it" in caplog.text
    assert best('a')['evaluation']['J&F'] == 0.4


@pytest.mark.parametrize('video', [0, 1])
def test_a_signal_ends_an_evaluation_and_it_is_done_again(learn, monkeypatch, caplog, video):
    """The signal comes in the evaluation after iteration 3, in one of its videos. A checkpoint was written before."""
    caplog.set_level('INFO')
    flags = ('--stage', 3, '-i', 4, '--lr', 1e-3, '--average', 0.5, *HELD, '--evaluate_every', 3)
    learn('--id', 'straight', *flags)
    frames = []

    def score(scores, name, *masks):
        frames.append(name)
        if len(frames) == 2 + 8 * video:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, 'score_frame', score)
        assert learn('--id', 'stopped', *flags) == 128 + signal.SIGTERM
    assert len(frames) == 2 + 8 * video
    assert caplog.messages[-1] == 'stopped by signal 15 after iteration 3; --resume continues'
    assert not os.path.exists('saves/stopped/best.pth')
    assert checkpoint('stopped', 3)['iteration'] == 3
    caplog.clear()
    assert learn('--id', 'stopped', '--resume') == 0
    done = [message.split(':')[0] for message in caplog.messages if message.startswith('evaluation')]
    assert done == ['evaluation after iteration 3', 'evaluation after iteration 4']
    for found, expected in (
        (best('stopped'), best('straight')),
        (checkpoint('stopped', 4), checkpoint('straight', 4)),
    ):
        assert digest(found) == digest(expected)


def test_too_little_memory_names_the_flag(learn, monkeypatch):
    def fail(*args, **options):
        raise torch.OutOfMemoryError('CUDA out of memory.\nMore of it.')

    monkeypatch.setattr(InferenceCore, 'step', fail)
    with pytest.raises(
        MemoryError, match=r'while bear was evaluated; a smaller evaluation size.*CUDA out of memory\.\)'
    ):
        learn('--stage', 3, '--id', 'a', '-i', 1, '--evaluate_every', 1, '--hold_aside', 'bear')
    assert checkpoint('a', 1)['iteration'] == 1


# Refusing


def test_nothing_held_aside(learn, capsys, tmp_path):
    with pytest.raises(SystemExit):
        learn('--stage', 3, '--id', 'a', '--evaluate_every', 2)
    assert (
        '--evaluate_every: expected videos to evaluate, --hold_aside VIDEO ..., found none' in capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_evaluated_is_said_at_once(learn, tmp_path):
    with pytest.raises(
        DataError, match=r'expected a video horse to hold aside and to evaluate, found none in .*480p or'
    ):
        learn('--stage', 0, '--id', 'a', '--evaluate_every', 2, '--hold_aside', 'horse')
    davis = tmp_path / 'D' / '2017' / 'trainval'
    images, masks = davis / 'JPEGImages' / '480p', davis / 'Annotations' / '480p'
    roots = {'davis_root': tmp_path / 'D', 'yv_root': 'none'}
    write_video(images, masks, 'bear')
    assert len(find_held_aside(['bear', 'bear'], **roots)) == 1
    for path in (masks / 'bear' / '00003.png', images / 'bear' / '00002.jpg'):
        path.write_bytes(path.read_bytes()[:300])
        with pytest.raises(DataError, match=f'{path.name}: expected an image'):
            find_held_aside(['bear'], **roots)
    write_video(images, masks, 'bear')
    for number in range(1, 8):
        (masks / 'bear' / f'{number:05d}.png').unlink()
    with pytest.raises(DataError, match=r'expected annotations to score, .* found none'):
        find_held_aside(['bear'], **roots)
    write(images / 'bear' / '00005.jpg', np.zeros((50, 70, 3), np.uint8))
    with pytest.raises(DataError, match=r'00005\.jpg: expected the size of the frames before, \(100, 140\)'):
        find_held_aside(['bear'], **roots)


def test_a_video_of_ones_own_is_evaluated(learn, tmp_path, scored):
    write_video(tmp_path / 'mine/JPEGImages', tmp_path / 'mine/Annotations', 'cat')
    write_video(tmp_path / 'mine/JPEGImages', tmp_path / 'mine/Annotations', 'dog')
    own = ('--video_root', tmp_path / 'mine', '--hold_aside', 'cat')
    scored(0.5)
    assert learn('--stage', 3, '--id', 'a', '-i', 1, '--evaluate_every', 1, *own) == 0
    assert list(best('a')['evaluation']['videos']) == ['cat']


def test_the_network_to_start_from_is_evaluated_first(learn, scored, caplog):
    """A training that makes the network worse does not replace it, and its scores show that it is worse."""
    assert learn('--stage', 3, '--id', 'a', '-i', 1) == 0
    scored(0.8, 0.8, 0.7, 0.7)
    start = ('--load_network', 'saves/a/a.pth', *HELD)
    assert learn('--stage', 3, '--id', 'b', '-i', 1, '--lr', 1e-2, '--evaluate_every', 1, *start) == 0
    assert (best('b')['evaluation']['iteration'], best('b')['evaluation']['J']) == (0, 0.8)
    kept, first = load_network('saves/b/best.pth').state_dict(), load_network('saves/a/a.pth').state_dict()
    assert all(torch.equal(kept[name], first[name]) for name in first)


def test_what_the_start_recommends_is_kept(learn, scored, appearing):
    """The recommendation is in all checkpoints, those of a continued run too, in the finished file and in the best."""
    assert learn('--stage', 3, '--id', 'a', '-i', 1) == 0
    save_network('recommending.pth', load_network('saves/a/a.pth'), recommended={'mem_every': 2})
    flags = ('--load_network', 'recommending.pth', '--evaluate_every', 5, *HELD)
    scored(*[0.5] * 8)
    assert learn('--stage', 3, '--id', 'b', '-i', 1, *flags) == 0
    assert learn('--stage', 3, '--id', 'b', '-i', 2, '--resume') == 0
    for file in ('checkpoint_00000001.pth', 'checkpoint_00000002.pth', 'b.pth', 'best.pth'):
        assert load_network(f'saves/b/{file}').recommended == {'mem_every': 2}


def test_validation_follows_what_is_recommended(small_network, appearing, monkeypatch):
    configs = []
    monkeypatch.setattr(
        evaluation,
        'InferenceCore',
        lambda network, config, **_: configs.append(config) or InferenceCore(network, config),
    )
    monkeypatch.setattr(small_network, 'recommended', {'mem_every': 2})
    score_video(small_network, appearing, size=64, stop=StopRequest())
    assert (configs[0].mem_every, configs[0].size) == (2, 64)
