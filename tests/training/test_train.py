"""train.py as users meet it: every stage from disk, starting, continuing, stopping, and what it refuses."""

import collections
import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from dataset.sampling import Address
from dataset.training import open_training_set
from model import VARIANTS, CheckpointError, load_network
from model.checkpoint import read_checkpoint
from model.clip import segment_clip
from model.losses import intersection_and_union, iou
from scripts.training_flags import training_parser
from tests.conftest import REPOSITORY, make_small_network
from tests.tiny import TINY
from tests.trees import write_video
from training import loop
from training.report import Report
from training.run import Run
from training.stages import STAGES, Stage
from training.state import TrainingState, initial_network

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture
def run(learn):
    return learn


def checkpoint(name, iteration):
    return read_checkpoint(f'saves/{name}/checkpoint_{iteration:08d}.pth')


def assert_same_weights(a, b, *, tolerance=1e-6):
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=0, atol=tolerance)


def files(folder):
    return sorted(re.sub(r'(tfevents).*', r'\1', path.name) for path in folder.iterdir())


# The whole way


@pytest.mark.parametrize('stage', [0, 1, 2, 3])
def test_every_stage_from_disk_to_weights(run, tmp_path, stage):
    assert run('--stage', stage, '--id', 'a', '-i', 4, '--save_every', 1, '--log_every', 2, '--images_every', 2) == 0
    folder = tmp_path / 'saves' / 'a'
    assert files(folder) == [
        'a.pth',
        'checkpoint_00000002.pth',
        'checkpoint_00000003.pth',
        'checkpoint_00000004.pth',
        'config.json',
        'events.out.tfevents',
    ]
    network = load_network(folder / 'a.pth', widen=None)
    assert network.config.single_object == (stage == 0)
    assert_same_weights(network.state_dict(), checkpoint('a', 4)['network'])
    training = load_network(folder / 'checkpoint_00000004.pth', widen=None)
    assert_same_weights(network.state_dict(), training.state_dict())
    config = json.loads((folder / 'config.json').read_text())
    assert config['stage']['batch_size'] == 2
    assert config['flags']['stage'] == stage


def test_some_checkpoints_stay_for_good(run, tmp_path):
    """--keep_every need not be a multiple of --save_every, and resuming with another --keep_every deletes none."""
    folder = tmp_path / 'saves' / 'a'
    flags = ('--stage', 3, '--id', 'a', '--save_every', 2)
    assert run(*flags, '-i', 3, '--keep_every', 3) == 0
    assert [path.name for path in Run(folder).checkpoints()] == ['kept_00000003.pth', 'checkpoint_00000002.pth']
    (folder / '.kept_00000006.pth.part').write_bytes(b'half')
    assert run(*flags, '-i', 12, '--keep_every', 5, '--resume') == 0  # from kept_00000003.pth
    assert [path.name for path in Run(folder).checkpoints()] == [
        'checkpoint_00000012.pth',
        'kept_00000010.pth',
        'checkpoint_00000008.pth',
        'checkpoint_00000006.pth',
        'kept_00000005.pth',
        'kept_00000003.pth',
    ]
    assert not (folder / '.kept_00000006.pth.part').exists()
    assert load_network(folder / 'kept_00000005.pth', widen=None).config.arch == 'stcn'


def test_a_new_checkpoint_is_kept_beside_damaged_later_ones(tmp_path):
    run = Run(tmp_path / 'a')
    run.save({'iteration': 1000, 'weights': torch.ones(1)}, for_good=True)
    for iteration in (2000, 3000, 4000):
        (run.folder / f'checkpoint_{iteration:08d}.pth').write_bytes(b'damaged')
    found = run.start(resume=True)
    assert found is not None
    assert found[1].name == 'kept_00001000.pth'
    run.save({'iteration': 1500, 'weights': torch.ones(1)})
    found = run.start(resume=True)
    assert found is not None
    assert found[1].name == 'checkpoint_00001500.pth'


def test_results_without_checkpoints_are_not_replaced(tmp_path, small_network):
    """Large checkpoints may be deleted when a run is finished, or was good enough at some evaluation."""
    scores = {'size': 480, 'J': 0.8, 'F': 0.8, 'J&F': 0.8, 'videos': {}}
    finished, good, begun = (Run(tmp_path / name) for name in ('finished', 'good', 'begun'))
    finished.finish(small_network)
    good.keep_best(small_network, {'iteration': 100} | scores)
    begun.keep_best(small_network, {'iteration': 0} | scores)  # what training started from
    for run, resume in ((finished, False), (finished, True), (good, False)):
        with pytest.raises(CheckpointError, match='another id'):
            run.start(resume=resume)
    assert good.start(resume=True) is None
    assert begun.start(resume=False) is None


def test_a_configuration_of_an_older_version_continues(tmp_path):
    (tmp_path / 'config.json').write_text('{"flags": {}}')
    assert not Run(tmp_path).continues(resume=False)


def test_a_network_without_attention_learns(run, tmp_path, monkeypatch):
    monkeypatch.setitem(VARIANTS, 'tiny', dataclasses.replace(TINY, fusion_attention=False))
    assert run('--stage', 3, '--id', 'a', '-i', 1) == 0
    network = load_network(tmp_path / 'saves' / 'a' / 'a.pth')
    assert not network.config.fusion_attention
    assert not any('attention' in name for name in network.state_dict())


def test_null_is_kept_nowhere(run, tmp_path):
    assert run('--stage', 3, '--id', 'NULL', '-i', 2, '--save_every', 1, '--log_every', 1, '--images_every', 1) == 0
    assert list(tmp_path.iterdir()) == []


def test_curves_and_images(run, tmp_path, caplog):
    caplog.set_level('INFO')
    run('--stage', 3, '--id', 'a', '-i', 4, '--log_every', 2, '--images_every', 4, '--steps', 3)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / 'saves' / 'a')).Reload()
    assert [event.step for event in events.Scalars('train/loss')] == [2, 4]
    assert [event.value for event in events.Scalars('train/lr')] == pytest.approx([1e-5, 1e-6])
    [image] = events.Images('train/target_and_prediction')
    assert (image.width, image.height) == (5 * 48, 2 * 48)
    lines = [line for line in caplog.messages if re.match(r'[24]/4  loss \d.*iou_1 .* it/s  \S+ left', line)]
    assert len(lines) == 2


def test_overfits_one_clip(roots):
    torch.manual_seed(0)
    sample = open_training_set('static', size=64, **roots)[Address(0, 0, 0)]
    batch = {name: value[None] for name, value in sample.items() if isinstance(value, torch.Tensor)}
    network = make_small_network(single_object=True)
    state = TrainingState(network, torch.optim.Adam(network.parameters()), torch.amp.GradScaler('cpu', enabled=False))
    stage = Stage('static', 1, 50, (40,), lr=1e-3)
    with Report(None, start=0, iterations=stage.iterations) as report:
        loop.train(state, itertools.repeat(batch), stage, Run(None), report, device=torch.device('cpu'))
    with torch.no_grad():
        logits = segment_clip(network, batch['rgb'], batch['masks'][:, 0].float(), batch['selector'])
    assert iou(intersection_and_union(logits, batch['target'][:, 1:])).item() > 0.95


# Gradients


def gradients(name):
    """A tenth of the gradients of the first iteration, which is what Adam's first moments are then."""
    return [moments['exp_avg'] for moments in checkpoint(name, 1)['optimizer']['state'].values()]


def assert_same_gradients(found, expected):
    scale = max(gradient.norm() for gradient in expected)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-9 * scale


@pytest.mark.parametrize('stage', [0, 3])
def test_accumulation_gives_the_gradients_of_the_whole_batch(run, stage):
    run('--stage', stage, '--id', 'whole', '-b', 4, '-i', 1)
    run('--stage', stage, '--id', 'parts', '-b', 4, '-i', 1, '--accumulation', 4)
    assert_same_gradients(gradients('parts'), gradients('whole'))


def test_mixed_precision_on_a_cpu(run, monkeypatch):
    """Of a MobileNetV2, which has convolutions of its own for that."""
    mobilenet = dataclasses.replace(TINY, key_backbone='mobilenet_v2', value_backbone='mobilenet_v2')
    monkeypatch.setitem(VARIANTS, 'tiny', mobilenet)
    run('--stage', 3, '--id', 'full', '-i', 1)
    run('--stage', 3, '--id', 'half', '-i', 1, '--amp_dtype', 'bfloat16')
    full, half = (torch.cat([gradient.flatten() for gradient in gradients(name)]) for name in ('full', 'half'))
    assert torch.cosine_similarity(full, half, dim=0) > 0.95
    assert not torch.equal(full, half)
    run('--stage', 3, '--id', 'off', '-i', 1, '--amp_dtype', 'bfloat16', '--no_amp')
    assert all(torch.equal(*both) for both in zip(gradients('off'), gradients('full'), strict=True))


def test_clipped_gradients_keep_their_direction(run):
    run('--stage', 3, '--id', 'free', '-i', 1)
    run('--stage', 3, '--id', 'clipped', '-i', 1, '--clip_norm', 0.01)
    free, clipped = (
        torch.cat([gradient.flatten() / 0.1 for gradient in gradients(name)]) for name in ('free', 'clipped')
    )
    assert clipped.norm() == pytest.approx(0.01, rel=1e-3)
    assert torch.cosine_similarity(clipped, free, dim=0) > 0.9999


def test_warm_up_and_steps():
    stage = Stage('main', 8, 20, (10, 15), lr=1.0, gamma=0.5, warmup=4)
    rates = [stage.rate(iteration) for iteration in range(20)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0] + 5 * [1.0] + 5 * [0.5] + 5 * [0.25])


def test_a_short_recipe(run, tmp_path, roots):
    """Rates, hardest pixels and data of a run that is much shorter than the paper's."""
    flags = (
        '--stage',
        2,
        '--id',
        'a',
        '-i',
        4,
        '--lr',
        1e-3,
        '--warmup',
        1,
        '--bootstrap',
        1,
        3,
        '--log_every',
        1,
        '--synthetic_root',
        roots['static_root'],
        '--crop_scale',
        0.1,
        1,
    )
    assert run(*flags) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / 'saves' / 'a')).Reload()
    assert [event.value for event in events.Scalars('train/p')] == pytest.approx([1, 1, 0.575, 0.15])
    assert [event.value for event in events.Scalars('train/lr')] == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3])
    assert load_network('saves/a/a.pth').config == TINY


def test_the_light_recipe_changes_nothing_of_the_papers_stages():
    for stage in STAGES.values():
        assert (stage.warmup, stage.bootstrap) == (0, (20_000, 70_000))


# Continuing


def test_resumes_by_id_alone_to_the_same_weights(run, monkeypatch, caplog):
    flags = ('--stage', '3', '-i', 7, '--save_every', 4)
    run('--id', 'straight', *flags)

    def stop_at(iteration, *bootstrap):
        if iteration == 4:  # the one after the last checkpoint
            os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(loop, 'hardest_fraction', stop_at)
        assert run('--id', 'stopped', *flags) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert checkpoint('stopped', 5)['iteration'] == 5
    assert train.main(['--id', 'stopped', '--resume', '--device', 'cpu']) == 0
    assert_same_weights(checkpoint('stopped', 7)['network'], checkpoint('straight', 7)['network'])
    found, expected = (checkpoint(name, 7)['optimizer']['state'] for name in ('stopped', 'straight'))
    assert all(torch.equal(found[i][name], value) for i in expected for name, value in expected[i].items())


def test_a_finished_run_is_left_as_it_is(run, tmp_path):
    flags = ('--stage', 3, '--id', 'a', '-i', 2)
    run(*flags)
    before = checkpoint('a', 2)['network']
    with pytest.raises(CheckpointError, match='holds a run already; resume it'):
        run(*flags)
    assert run(*flags, '--resume') == 0
    assert_same_weights(checkpoint('a', 2)['network'], before, tolerance=0)


def test_an_unreadable_checkpoint_is_passed_over(run, tmp_path, caplog):
    flags = ('--stage', 3, '--id', 'a', '-i', 3, '--save_every', 1)
    run(*flags)
    expected = checkpoint('a', 3)['network']
    folder = Run(tmp_path / 'saves' / 'a')
    newest = folder.checkpoints()[0]
    content = newest.read_bytes()
    for damaged in (content[:-1], content[: len(content) // 2], b'', b'garbage' * 1000):
        newest.write_bytes(damaged)
        assert folder.newest()[1].name == 'checkpoint_00000002.pth'
        assert f'{newest}: ' in caplog.messages[-1]
    (newest.parent / '.checkpoint_00000004.pth.part').write_bytes(b'half')
    (newest.parent / 'checkpoint_00000009.pth.part').write_bytes(b'half')
    assert run(*flags, '--resume') == 0
    assert_same_weights(checkpoint('a', 3)['network'], expected)
    assert not (newest.parent / '.checkpoint_00000004.pth.part').exists()


def test_resume_without_a_checkpoint_begins(run, tmp_path):
    assert run('--stage', 3, '--id', 'a', '-i', 1, '--resume') == 0


def test_other_flags_on_resume(run, caplog):
    run('--stage', 3, '--id', 'a', '-i', 2)
    with pytest.raises(CheckpointError, match='is a run of stage 3, not 2'):
        run('--stage', 2, '--id', 'a', '-i', 2, '--resume')
    assert run('--id', 'a', '-i', 3, '--resume', '--lr', '2e-5') == 0
    assert 'continues with --iterations 3, was 2' in caplog.text
    assert 'continues with --lr 2e-05, was None' in caplog.text
    assert checkpoint('a', 3)['optimizer']['param_groups'][0]['lr'] == 2e-5


# Videos of one's own


@pytest.fixture
def own_root(tmp_path):
    root = tmp_path / 'mine'
    for name in ('my cat', 'dog_2'):
        write_video(root / 'JPEGImages', root / 'Annotations', name, step=5)
    return root


@pytest.mark.parametrize('others', [(), ('--davis_root', 'nowhere', '--yv_root', 'none')], ids=['beside', 'alone'])
def test_videos_of_any_name(run, tmp_path, own_root, others, caplog):
    caplog.set_level('INFO')
    flags = ('--video_root', own_root, '--video_repeat', 2, '--hold_aside', 'dog_2', *others)
    assert run('--stage', 3, '--id', 'a', '-i', 3, '--save_every', 1, *flags) == 0
    saved = json.loads((tmp_path / 'saves' / 'a' / 'config.json').read_text())['flags']
    assert (saved['video_root'], saved['video_list'], saved['video_repeat']) == ([str(own_root)], None, 2)
    shares = [message for message in caplog.messages if message.startswith('real clips')]
    share = '100%' if others else '22.2%'  # 'my cat' counts twice, bear 5 times, 2 videos of YouTubeVOS once
    assert len(shares) == 1
    assert f'videos of your own ({share})' in shares[0]

    expected = checkpoint('a', 3)['network']
    (tmp_path / 'saves' / 'a' / 'checkpoint_00000003.pth').unlink()
    assert train.main(['--id', 'a', '--resume']) == 0
    assert_same_weights(checkpoint('a', 3)['network'], expected)


def test_a_resumed_run_says_which_videos_are_others(run, own_root, caplog):
    flags = ('--stage', 3, '--id', 'a', '--resume')
    run(*flags, '-i', 1)
    config = Run(Path('saves/a')).configuration()
    for name in ('video_root', 'video_list', 'video_repeat'):  # as in a run from before these flags
        del config['flags'][name]
    Path('saves/a/config.json').write_text(json.dumps(config))
    run(*flags, '-i', 1)
    assert 'continues with' not in caplog.text
    run(*flags, '-i', 1, '--video_root', own_root)
    assert f"saves/a: continues with --video_root ['{own_root}'], was []" in caplog.text


# Starting from files


def test_stage_0_weights_start_the_other_stages(run):
    run('--stage', 0, '--id', 's0', '-i', 1)
    start = initial_network(arch=None, single_object=False, weights='saves/s0/s0.pth')
    name = 'value_encoder.layers.0.0.weight'
    weight, widened = checkpoint('s0', 1)['network'][name], start.state_dict()[name]
    assert torch.equal(widened[:, :4], weight)
    fifth = widened[:, 4].flatten(1)
    torch.testing.assert_close(fifth.T @ fifth, torch.eye(9))
    assert run('--stage', 3, '--id', 's03', '-i', 1, '--load_network', 'saves/s0/s0.pth') == 0

    with pytest.raises(CheckpointError, match='multi-object network; stage 0 trains a single-object network'):
        run('--stage', 0, '--id', 'back', '-i', 1, '--load_network', 'saves/s03/s03.pth')
    with pytest.raises(CheckpointError, match='other stages can start from it, but cannot continue it'):
        run('--stage', 3, '--id', 'on', '-i', 2, '--load_model', 'saves/s0/checkpoint_00000001.pth')
    with pytest.raises(CheckpointError, match="expected the variant 'stcn'"):
        run('--stage', 3, '--id', 'other', '--arch', 'stcn', '--load_network', 'saves/s03/s03.pth')
    with pytest.raises(CheckpointError, match='weights only can start a stage but cannot continue one'):
        run('--stage', 3, '--id', 'on', '--load_model', 'saves/s03/s03.pth')


@pytest.mark.parametrize('flags', [(), ('--amp_dtype', 'float16')], ids=['float32', 'float16'])
def test_load_model_continues_a_checkpoint_under_another_id(run, flags):
    run('--stage', 3, '--id', 'a', '-i', 4, '--save_every', 1, *flags)
    if flags:  # a random network's first gradients overflow, so the scale has fallen
        assert checkpoint('a', 2)['scaler']['scale'] < 2**16
    run('--stage', 3, '--id', 'b', '-i', 4, '--load_model', 'saves/a/checkpoint_00000002.pth', *flags)
    assert_same_weights(checkpoint('b', 4)['network'], checkpoint('a', 4)['network'])


def test_load_model_takes_the_published_training_checkpoint(run, caplog):
    """It has a scheduler and no scaler, and its optimizer is of an older PyTorch, whose steps are plain numbers."""
    run('--stage', 3, '--id', 'a', '-i', 4, '--save_every', 1)
    ours = checkpoint('a', 2)
    state = {i: moments | {'step': int(moments['step'])} for i, moments in ours['optimizer']['state'].items()}
    group = {
        'lr': 1e-5,
        'betas': (0.9, 0.999),
        'eps': 1e-8,
        'weight_decay': 1e-7,
        'amsgrad': False,
        'initial_lr': 1e-5,
        'params': list(state),
    }
    scheduler = {
        'milestones': collections.Counter({125_000: 1}),
        'gamma': 0.1,
        'base_lrs': [1e-5],
        'last_epoch': 2,
        '_step_count': 3,
        'verbose': False,
        '_get_lr_called_within_step': False,
        '_last_lr': [1e-5],
    }
    theirs = {
        'it': 2,
        'network': ours['network'],
        'optimizer': {'state': state, 'param_groups': [group]},
        'scheduler': scheduler,
    }
    torch.save(theirs, 'theirs.pth')
    run('--stage', 3, '--id', 'b', '-i', 4, '--load_model', 'theirs.pth')
    assert_same_weights(checkpoint('b', 4)['network'], checkpoint('a', 4)['network'])
    run('--stage', 3, '--id', 'half', '-i', 3, '--load_model', 'theirs.pth', '--amp_dtype', 'float16')
    assert 'theirs.pth: holds no gradient scaler' in caplog.text

    state[0]['exp_avg'] = state[0]['exp_avg'][:1]
    torch.save(theirs, 'bad.pth')
    with pytest.raises(CheckpointError, match='its optimizer does not fit the network'):
        run('--stage', 3, '--id', 'c', '-i', 4, '--load_model', 'bad.pth')


# Refusing


def test_a_loss_that_is_not_finite_stops_with_the_state_saved(run, tmp_path):
    with pytest.raises(FloatingPointError, match=r'not finite.*nonfinite_0000000\d\.pth.*resume'):
        run('--stage', 3, '--id', 'a', '-i', 50, '--lr', '1e30', '--log_every', 4, '--save_every', 1)
    names = files(tmp_path / 'saves' / 'a')
    assert sum(name.startswith('nonfinite') for name in names) == 1
    assert 'a.pth' not in names
    for path in Run(tmp_path / 'saves' / 'a').checkpoints():
        assert all(value.isfinite().all() for value in read_checkpoint(path)['network'].values())


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--id', 'a', '--stage', 4), 'invalid choice: 4'),
        (('--id', 'a'), '--stage is needed'),
        (('--stage', 0), 'required: --id'),
        (('--stage', 0, '--id', 'a/b'), 'expected letters'),
        (('--stage', 0, '--id', 'a', '--arch', 'vgg'), 'expected one of stcn, .*found vgg'),
        (('--stage', 0, '--id', 'a', '--crop_size', 100), 'expected a multiple of 16, found 100'),
        (('--stage', 3, '--id', 'a', '--crop_scale', 0.5, 0.2), 'two numbers from 0 to 1 in order, found .0.5, 0.2.'),
        (('--stage', 0, '--id', 'a', '--warmup', -1), 'expected a positive number or 0, found -1'),
        (('--stage', 0, '--id', 'a', '--seed', -1), 'expected a positive number or 0, found -1'),
        (('--stage', 0, '--id', 'a', '--lr', -1), 'expected a positive number or 0, found -1'),
        (('--stage', 0, '--id', 'a', '-b', 5, '--accumulation', 2), 'expected a global batch that divides.*found 5'),
        (('--stage', 0, '--id', 'a', '--load_network', 'x', '--load_model', 'y'), 'expected only one'),
        (('--stage', 1, '--id', 'a', '--video_root', 'x'), '--video_root: expected --stage 2 or 3, .*found 1'),
        (('--stage', 3, '--id', 'a', '--video_list', 'x'), '--video_list and --video_repeat: expected --video_root'),
        (('--stage', 3, '--id', 'a', '--video_repeat', 2), '--video_list and --video_repeat: expected --video_root'),
    ],
)
def test_wrong_flags(run, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        run(*flags)
    assert end.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--stage', 0, '--static_root', 'nowhere'), 'nowhere: expected a folder of static images'),
        (('--stage', 0, '--static_root', '.'), 'expected image and mask pairs.*found none'),
        (('--stage', 1, '--bl_root', '.'), 'found no video to train on'),
        (('--stage', 2, '--davis_root', '.', '--yv_root', '.'), 'expected videos in .* found none to train on'),
        (('--stage', 3, '--video_root', 'nowhere'), 'nowhere: expected the folders JPEGImages'),
        (('--stage', 3, '--load_network', 'none.pth'), 'none.pth: no such checkpoint file'),
        (('--stage', 3, '--load_model', 'none.pth'), 'none.pth: no such checkpoint file'),
    ],
)
def test_missing_files(run, tmp_path, flags, message):
    with pytest.raises((ValueError, CheckpointError), match=message):
        run('--id', 'a', *flags)
    assert list(tmp_path.iterdir()) == []


def test_help_is_quick_and_complete():
    command = [sys.executable, '-X', 'importtime', 'train.py', '--help']
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60)
    assert 'torch' not in result.stderr
    flags = (
        '--stage --id --load_network --load_model --benchmark --no_amp --static_root --bl_root --yv_root '
        '--davis_root --num_workers -b --batch_size -i --iterations --steps --lr --gamma --debug'
    )
    assert set(flags.split()) <= set(re.findall(r'--?\w+', result.stdout))
    for action in training_parser('')._actions:
        assert action.help
        assert (
            action.option_strings[0] in ('-h', '--id', '--resume', '--stage')
            or 'default' in action.help
            or action.container.title.startswith('optimization (default')
        )


def test_stages_are_those_of_the_paper():
    assert {
        number: (stage.batch_size, stage.iterations, stage.steps, stage.lr, stage.gamma)
        for number, stage in STAGES.items()
    } == {
        0: (16, 300_000, (150_000,), 1e-5, 0.1),
        1: (8, 500_000, (450_000,), 1e-5, 0.1),
        2: (8, 300_000, (250_000,), 1e-5, 0.1),
        3: (8, 150_000, (125_000,), 1e-5, 0.1),
    }
    rates = [STAGES[3].rate(iteration) for iteration in (0, 124_999, 125_000, 149_999)]
    assert rates == pytest.approx([1e-5, 1e-5, 1e-6, 1e-6])
