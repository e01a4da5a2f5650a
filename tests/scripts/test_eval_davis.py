"""eval_davis.py from a dataset root to the folder that is handed in."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval_davis
from dataset.davis import DAVIS_2016_VAL, davis, davis_videos
from dataset.io import PALETTE, DataError, read_mask, write_binary_mask, write_mask
from inference import InferenceCore, outputs
from inference.run import run_dataset
from model import CheckpointError
from scripts.evaluate import evaluate as score
from tests.conftest import tree
from util.cli import sha256


@pytest.fixture
def evaluate(davis_root, small_checkpoint, monkeypatch):
    """Runs the script in this process; returns the exit status and the output folder's files."""

    def evaluate(output, *flags, root=davis_root):
        monkeypatch.setattr(
            sys,
            'argv',
            [
                'eval_davis.py',
                '--model',
                str(small_checkpoint),
                '--device',
                'cpu',
                '--davis_path',
                str(root),
                '--output',
                str(output),
                *flags,
            ],
        )
        status = eval_davis.main()
        return status, tree(output)

    return evaluate


def masks_of(files):
    return {name: content for name, content in files.items() if name.endswith('.png')}


def test_masks_are_what_a_server_takes(evaluate, davis_root, tmp_path):
    status, files = evaluate(tmp_path / 'out')
    assert status == 0
    assert set(masks_of(files)) == {
        f'{video}/{frame:05d}.png' for video, count in (('dog', 7), ('goat', 5)) for frame in range(count)
    }
    for name in masks_of(files):
        with Image.open(tmp_path / 'out' / name) as image:
            assert image.mode == 'P'
            assert image.size == (182, 110)
            assert np.array_equal(np.reshape(image.getpalette(), (-1, 3))[:4], PALETTE[:4])
            assert set(np.unique(image)) <= {0, 1, 2, 3}
    first = davis_root / 'trainval' / 'Annotations' / '480p' / 'dog' / '00000.png'
    assert np.array_equal(read_mask(tmp_path / 'out' / 'dog' / '00000.png'), read_mask(first))


def test_only_the_first_annotation_is_read(evaluate, davis_root, tmp_path):
    _, with_all = evaluate(tmp_path / 'all')
    for path in (davis_root / 'trainval' / 'Annotations').rglob('*.png'):
        if path.stem != '00000':
            path.unlink()
    _, with_first = evaluate(tmp_path / 'first')
    assert masks_of(with_all) == masks_of(with_first)


def test_2016_merges_the_objects(evaluate, davis_root, tmp_path):
    status, files = evaluate(tmp_path / 'out', '--year', '2016')
    assert status == 0
    assert len(masks_of(files)) == 12
    for name in masks_of(files):
        with Image.open(tmp_path / 'out' / name) as image:
            assert image.mode == 'L'  # the official evaluation takes pixels above 128
            assert set(np.unique(image)) <= {0, 255}
    first = read_mask(davis_root / 'trainval' / 'Annotations' / '480p' / 'dog' / '00000.png')
    assert np.array_equal(read_mask(tmp_path / 'out' / 'dog' / '00000.png'), first > 0)


def test_no_folder_mixes_formats_of_2016(evaluate, tmp_path):
    """Folders of older versions have palette PNGs of 0 and 1, and their settings do not name the format."""
    out = tmp_path / 'out'
    evaluate(out, '--year', '2016')
    settings = json.loads((out / 'settings.json').read_text())
    assert settings.pop('format') == 'grayscale 0 and 255'
    (out / 'settings.json').write_text(json.dumps(settings))
    with pytest.raises(DataError, match=r'other settings .*format was None, is grayscale'):
        evaluate(out, '--year', '2016')
    assert 'format' not in json.loads(evaluate(tmp_path / 'out2017')[1]['settings.json'])


@pytest.mark.parametrize('binary', [False, True])
def test_both_formats_of_2016_are_scored_alike(davis_root, tmp_path, binary):
    for path in (davis_root / 'trainval' / 'Annotations' / '480p').rglob('*.png'):
        mask = (read_mask(path) > 0).astype(np.uint8)
        (write_binary_mask if binary else write_mask)(tmp_path / 'out' / path.parent.name / path.name, mask)
    assert score(tmp_path / 'out', davis_root, dataset='davis2016')['J&F'] == 1


def test_2016_root_gives_the_same(evaluate, davis_root, tmp_path):
    _, expected = evaluate(tmp_path / 'out', '--year', '2016')
    shutil.copytree(davis_root / 'trainval', tmp_path / '2016')
    shutil.rmtree(tmp_path / '2016' / 'ImageSets')
    _, found = evaluate(tmp_path / 'out2016', '--year', '2016', root=tmp_path / '2016')
    assert masks_of(found) == masks_of(expected)


def test_testdev(evaluate, davis_root, tmp_path):
    shutil.move(davis_root / 'trainval', davis_root / 'test-dev')
    image_sets = davis_root / 'test-dev' / 'ImageSets' / '2017'
    shutil.move(image_sets / 'val.txt', image_sets / 'test-dev.txt')
    status, files = evaluate(tmp_path / 'out', '--split', 'testdev')
    assert status == 0
    assert len(masks_of(files)) == 12


def test_second_run_skips_what_is_finished(evaluate, tmp_path, capsys):
    _, first = evaluate(tmp_path / 'out')
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*.png')}
    capsys.readouterr()
    _, second = evaluate(tmp_path / 'out')
    assert '0 segmented, 2 finished before' in capsys.readouterr().out
    assert second == first
    assert times == {path: path.stat().st_mtime_ns for path in times}

    (tmp_path / 'out' / 'dog' / '00003.png').unlink()  # an interrupted video is done again
    _, third = evaluate(tmp_path / 'out')
    assert '1 segmented, 1 finished before' in capsys.readouterr().out
    assert third == first

    _, overwritten = evaluate(tmp_path / 'out', '--overwrite')
    assert '2 segmented, 0 finished before' in capsys.readouterr().out
    assert overwritten == first


def test_masks_of_other_settings_are_not_taken_for_these(evaluate, tmp_path):
    _, first = evaluate(tmp_path / 'out')
    with pytest.raises(DataError, match=r'mem_every was 5, is 2.*overwrite them'):
        evaluate(tmp_path / 'out', '--mem_every', '2')
    assert tree(tmp_path / 'out') == first
    evaluate(tmp_path / 'out', '--mem_every', '2', '--overwrite')
    assert json.loads((tmp_path / 'out' / 'settings.json').read_text())['mem_every'] == 2


def test_settings_of_one_network_read_as_they_always_did(evaluate, davis_root, small_checkpoint, tmp_path):
    """Folders of earlier versions can thus be continued, with whichever flags the same settings are given."""
    expected = {
        'top': 20,
        'mem_every': 5,
        'include_last': False,
        'max_memory_frames': None,
        'size': 0,
        'amp': False,
        'exact': False,
        'year': 2017,
        'davis_path': str(davis_root),
        'split': 'val',
        'network': sha256(small_checkpoint),
    }
    evaluate(tmp_path / 'out')
    assert json.loads((tmp_path / 'out' / 'settings.json').read_text()) == expected
    evaluate(tmp_path / 'out', '--preset', 'paper-val', '--kernel_sigma', '0', '--no_flip')


def test_members_tell_runs_apart(evaluate, small_checkpoint, tmp_path):
    evaluate(tmp_path / 'out')
    for flags, message in (
        (['--flip'], 'flip was None, is True'),
        (['--size', '0', '48'], r'size was 0, is \[0, 48\]'),
        (['--kernel_sigma', '7'], r'kernel_sigma was None, is 7\.0'),
        (['--model', str(small_checkpoint), str(small_checkpoint)], r'network was \w+, is \['),
    ):
        with pytest.raises(DataError, match=message):
            evaluate(tmp_path / 'out', *flags)
    small = ('--size', '48', '64')
    _, first = evaluate(tmp_path / 'two', *small, '--mem_every', 'none')
    assert evaluate(tmp_path / 'two', *small, '--mem_every', '0')[1] == first
    with pytest.raises(DataError, match=r'kernel_sigma was None, is \[0\.0, 7\.0\]'):
        evaluate(tmp_path / 'two', *small, '--mem_every', '0', '--kernel_sigma', '0', '7')


def test_a_folder_of_somebody_else_is_left_alone(evaluate, davis_root):
    annotations = davis_root / 'trainval' / 'Annotations' / '480p'
    before = tree(davis_root)
    for flags in ((), ('--overwrite',)):
        with pytest.raises(DataError, match='would also write there'):
            evaluate(annotations, *flags)
    with pytest.raises(DataError, match='expected an empty folder'):
        evaluate(davis_root)
    assert tree(davis_root) == before


def test_a_broken_video_is_reported_and_the_others_go_on(evaluate, davis_root, tmp_path, capsys):
    broken = davis_root / 'trainval' / 'JPEGImages' / '480p' / 'dog' / '00004.png'
    broken.write_bytes(broken.read_bytes()[:2000])
    status, files = evaluate(tmp_path / 'out')
    assert status == 1
    assert sum(name.startswith('goat') for name in masks_of(files)) == 5
    output = capsys.readouterr().out
    assert 'failed: dog' in output
    assert str(broken) in output


def test_an_error_while_writing_ends_the_run(davis_root, small_network, tmp_path, monkeypatch):
    def fail(path, mask):
        raise OSError(f'no space left: {path}')

    monkeypatch.setattr(outputs, 'write_mask', fail)
    with pytest.raises(OSError, match='no space left'):
        run_dataset([small_network], davis(davis_root), tmp_path / 'out')


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda base: shutil.rmtree(base / 'JPEGImages'), 'no DAVIS 2017 val; expected'),
        (lambda base: (base / 'ImageSets/2017/val.txt').unlink(), 'cannot read the list'),
        (lambda base: (base / 'ImageSets/2017/val.txt').write_bytes(b'\xff\xfe'), 'expected a text file'),
        (lambda base: (base / 'ImageSets/2017/val.txt').write_text(''), 'lists no videos'),
        (lambda base: (base / 'ImageSets/2017/val.txt').write_text('../dog'), 'expected the name of a video'),
        (lambda base: (base / 'ImageSets/2017/val.txt').write_text('dog\ncat\n'), '1 of the 2 videos.*missing: cat'),
        (lambda base: (base / 'Annotations/480p/dog/00000.png').unlink(), 'annotation of the first frame is missing'),
        (lambda base: [path.unlink() for path in (base / 'JPEGImages/480p/dog').iterdir()], 'no frames'),
    ],
)
def test_incomplete_roots(davis_root, damage, message):
    damage(davis_root / 'trainval')
    with pytest.raises(DataError, match=message):
        davis(davis_root)


def test_2016_has_20_videos(davis_root, caplog):
    assert len(DAVIS_2016_VAL) == len(set(DAVIS_2016_VAL)) == 20
    assert davis_videos(davis_root, year=2016, split='val') == (davis_root / 'trainval', ['dog', 'goat'])
    assert '2 of the 20' in caplog.text
    with pytest.raises(DataError, match='has no split'):
        davis_videos(davis_root, year=2016, split='testdev')


def test_a_missing_checkpoint(davis_root, tmp_path):
    words = ['--davis_path', davis_root, '--model', tmp_path / 'none.pth', '--output', tmp_path / 'out']
    with pytest.raises(CheckpointError) as error:
        eval_davis.main([*map(str, words)])
    message = str(error.value)
    assert '\n' not in message
    assert message.startswith(f'{tmp_path / "none.pth"}: no such checkpoint file. weights/stcn_light.pth is ')
    assert 'scripts/download.py weights' in message
    assert not (tmp_path / 'out').exists()


def test_empty_first_mask(evaluate, davis_root, tmp_path):
    """There is nothing to segment, so all masks are background, and there is a warning."""
    path = davis_root / 'trainval' / 'Annotations' / '480p' / 'dog' / '00000.png'
    Image.fromarray(np.zeros((110, 182), np.uint8)).save(path)
    status, files = evaluate(tmp_path / 'out')
    assert status == 0
    assert len(masks_of(files)) == 12
    assert not any(read_mask(tmp_path / 'out' / 'dog' / f'{frame:05d}.png').any() for frame in range(7))


def test_a_video_that_does_not_fit_into_memory_is_reported(davis_root, small_network, tmp_path, monkeypatch):
    step = InferenceCore.step

    def fail(self, image, *args, **options):
        if self.schedule.time == 2:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return step(self, image, *args, **options)

    monkeypatch.setattr(InferenceCore, 'step', fail)
    summary = run_dataset([small_network], davis(davis_root), tmp_path / 'out')
    assert list(summary.failures) == ['dog', 'goat']
    assert 'object_chunk' in summary.failures['dog']


def test_output_in_the_working_directory(evaluate, tmp_path, monkeypatch):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    assert evaluate(Path('.'), '--zip')[0] == 0
    assert (tmp_path / 'here.zip').exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_gpu(evaluate, tmp_path):
    _, expected = evaluate(tmp_path / 'cpu')
    evaluate(tmp_path / 'gpu', '--device', 'cuda')
    for name in masks_of(expected):
        assert (read_mask(tmp_path / 'gpu' / name) == read_mask(tmp_path / 'cpu' / name)).mean() > 0.99
