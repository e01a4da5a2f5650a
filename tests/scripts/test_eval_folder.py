"""scripts/eval_folder.py on the folders of MOSE and LVOS, from their trees to the archive that is handed in."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from dataset.folder import folder
from dataset.io import read_mask, write_mask
from inference.outputs import OutputError
from inference.sources import DIRECTIONS
from scripts import check_submission, eval_folder
from tests.conftest import APPEARING, FRAMES, GOLDEN


@pytest.fixture
def mose_root(tmp_path):
    """Two videos whose objects are all in the first frame, with the one mask that the validation set has."""
    root = tmp_path / 'MOSE' / 'valid'
    for video, frames in (('0a1b2c3d', FRAMES[:4]), ('ff00ff00', FRAMES[5:8])):
        for number, path in enumerate(frames):
            image = root / 'JPEGImages' / video / f'{number:05d}.jpg'
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).convert('RGB').save(image, quality=95)
        write_mask(root / 'Annotations' / video / '00000.png', read_mask(GOLDEN / 'first_mask.png'))
    return root


@pytest.fixture
def lvos_root(tmp_path):
    """A video with frames from 1 on, whose objects appear one after the other, each with a mask at its first frame.

    The later masks also show the earlier objects, at wrong places; ``valid_meta.json`` lists the first frames.
    """
    root = tmp_path / 'LVOS' / 'valid'
    meta = {}
    for number, path in enumerate(FRAMES[:10], 1):
        image = root / 'JPEGImages' / 'long' / f'{number:08d}.jpg'
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert('RGB').save(image, quality=95)
    for label, first in APPEARING.items():
        mask = read_mask(GOLDEN / 'appearing' / f'{first:05d}.png')
        for strip, known in enumerate(meta):
            mask[100 + 4 * strip : 104 + 4 * strip] = known
        write_mask(root / 'Annotations' / 'long' / f'{first + 1:08d}.png', mask)
        meta[label] = {'frame_range': {'start': f'{first + 1:08d}'}}
    (root / 'valid_meta.json').write_text(json.dumps({'videos': {'long': {'objects': meta}}}))
    return root


@pytest.fixture
def evaluate(small_checkpoint, tmp_path):
    """Runs the documented command on a root; returns the archive's masks."""

    def evaluate(root, name='out'):
        output = tmp_path / name
        words = ['--model', small_checkpoint, '--device', 'cpu', '--size', 96, '--root', root, '--output', output]
        assert eval_folder.main([*map(str, words), '--first_only', '--zip']) == 0
        assert check_submission.main([f'{output}.zip', '--dataset', 'folder', '--root', str(root)]) == 0
        with zipfile.ZipFile(f'{output}.zip') as archive:
            masks = {}
            for entry in archive.namelist():
                with archive.open(entry) as file, Image.open(file) as image:
                    assert (image.mode, image.size) == ('P', (182, 110))
                    masks[entry] = np.array(image)
        return masks

    return evaluate


def test_mose(mose_root, evaluate):
    masks = evaluate(mose_root)
    assert sorted(masks) == (
        [f'0a1b2c3d/{number:05d}.png' for number in range(4)] + [f'ff00ff00/{number:05d}.png' for number in range(3)]
    )
    assert set(np.unique(np.stack(list(masks.values())))) <= {0, 1, 2, 3}
    given = read_mask(GOLDEN / 'first_mask.png')
    assert (masks['0a1b2c3d/00000.png'] == given).mean() > 0.97


def test_lvos(lvos_root, evaluate):
    masks = evaluate(lvos_root)
    assert sorted(masks) == [f'long/{number:08d}.png' for number in range(1, 11)]
    for name, mask in masks.items():
        begun = {label for label, first in APPEARING.items() if first + 1 <= int(name[5:13])}
        assert set(np.unique(mask)) <= {0} | begun
    for label, first in APPEARING.items():
        given = read_mask(lvos_root / 'Annotations/long' / f'{first + 1:08d}.png')
        found = masks[f'long/{first + 1:08d}.png']
        assert ((found == label) == (given == label)).mean() > 0.97


def test_later_masks_of_an_object_are_not_read(lvos_root, evaluate):
    masks = evaluate(lvos_root)
    for first in sorted(APPEARING.values())[1:]:
        path = lvos_root / 'Annotations/long' / f'{first + 1:08d}.png'
        mask = read_mask(path)
        mask[100:] = 0  # removes objects that have appeared before
        write_mask(path, mask)
    shutil.copy(lvos_root / 'Annotations/long/00000001.png', lvos_root / 'Annotations/long/00000003.png')
    again = evaluate(lvos_root, 'again')
    assert all(np.array_equal(again[name], mask) for name, mask in masks.items())


@pytest.fixture
def run(small_checkpoint, tmp_path):
    """Runs eval_folder.py; returns the labels by the names of the files."""

    def run(root, name, *flags):
        output = tmp_path / name
        words = [
            '--model',
            small_checkpoint,
            '--device',
            'cpu',
            '--size',
            48,
            '--root',
            root,
            '--output',
            output,
            *flags,
        ]
        assert eval_folder.main([*map(str, words)]) == 0
        assert {path.name for path in output.iterdir()} <= {'cat', 'dog', 'settings.json'}
        return {str(path.relative_to(output)): read_mask(path) for path in sorted(output.rglob('*.png'))}

    return run


def test_masks_that_were_edited_since(run, folder_root, tmp_path, caplog, capsys):
    caplog.set_level('INFO')
    before = run(folder_root, 'out')
    mask = folder_root / 'Annotations/dog/frame11.png'
    labels = read_mask(mask)
    labels[:40] = 2
    Image.fromarray(labels).save(mask)
    with pytest.raises(OutputError, match=r'\(changed since then: Annotations/dog/frame11\.png\)') as error:
        run(folder_root, 'out')
    assert error.value.options == ('overwrite', 'output')
    # The settings of an earlier version do not tell what the masks were.
    record = tmp_path / 'out' / 'settings.json'
    settings = json.loads(record.read_text())
    assert sorted(settings.pop('files')) == [
        f'Annotations/{name}.png' for name in ('cat/0', 'dog/frame11', 'dog/frame9')
    ]
    record.write_text(json.dumps(settings))
    assert all(np.array_equal(before[name], again) for name, again in run(folder_root, 'out').items())
    assert 'videos: 0 segmented, 2 finished before' in capsys.readouterr().out
    assert 'an earlier version wrote it' in caplog.text
    again = run(folder_root, 'out', '--overwrite')
    assert not np.array_equal(before['dog/frame11.png'], again['dog/frame11.png'])
    assert np.array_equal(before['cat/0.png'], again['cat/0.png'])


def test_directions(run, folder_root, caplog, capsys, resnet_checkpoint):
    """In "dog" frames 9 and 11 of 8 to 12 have masks, in "cat" the first frame has one."""
    caplog.set_level('INFO')
    found = {each: run(folder_root, each, '--direction', each, '--model', resnet_checkpoint) for each in DIRECTIONS}
    assert '1 frames before the first mask of their video stay empty' in caplog.text
    assert '5 frames after the last mask of their video stay empty' in caplog.text
    assert capsys.readouterr().out.count('frames: 10\n') == len(DIRECTIONS)  # none counts twice
    forward, backward, both = found.values()
    names = [f'cat/{number}.png' for number in range(5)] + [f'dog/frame{number}.png' for number in range(8, 13)]
    assert {*forward} == {*names} - {'dog/frame8.png'}
    assert {*backward} == {'cat/0.png', *names[5:9]}
    assert {*both} == {*names}
    for name, labels in both.items():
        if name != 'dog/frame10.png' and name != 'dog/frame9.png':
            assert np.array_equal(labels, backward[name] if name == 'dog/frame8.png' else forward[name])
    assert {*np.unique(both['dog/frame9.png'])} >= {2, 255}
    settings = [json.loads((folder_root.parent / each / 'settings.json').read_text()) for each in DIRECTIONS]
    assert [each.get('direction') for each in settings] == [None, 'backward', 'both']


def test_what_waits_is_removed_after_an_error(small_checkpoint, folder_root, tmp_path, caplog):
    (folder_root / 'JPEGImages/dog/frame8.PNG').write_bytes(b'no image')  # the backward pass reads it last
    words = ['--model', small_checkpoint, '--device', 'cpu', '--size', 48, '--root', folder_root]
    assert eval_folder.main([*map(str, words), '--output', str(tmp_path / 'out'), '--direction', 'both']) == 1
    assert 'frame8.PNG' in caplog.text
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'cat', 'settings.json'}


def test_backwards_of_each_object_the_last_mask(run, lvos_root):
    masks = [path.name for path in sorted((lvos_root / 'Annotations' / 'long').iterdir())]
    both = folder(lvos_root, first_only=True)[0].given
    [video] = folder(lvos_root, first_only=True, direction='backward')
    assert list(both) == [name.removesuffix('.png') for name in masks]
    assert video.given == {'00000008': [2, 5, 9]}
    assert [frame.wanted for frame in video.frames] == [True] * 8 + [False] * 2
