"""eval_youtube.py and scripts/eval_folder.py: objects that appear later, frame subsets, many processes, kills."""

import json
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eval_youtube
import inference.ensemble as ensemble_module
from dataset.folder import folder
from dataset.io import DataError, read_mask
from dataset.youtube import youtube
from inference import InferenceConfig
from inference.outputs import Probabilities
from inference.run import share
from scripts import eval_folder
from scripts.evaluate import evaluate as score
from tests.conftest import APPEARING, tree
from tests.helpers import change_meta

SIZE = 96  # works faster than 480


@pytest.fixture
def evaluate(youtube_root, small_checkpoint):
    """Runs the script in this process and returns the output folder's files."""

    def evaluate(output, *flags, size=('--size', SIZE)):
        words = ['--model', small_checkpoint, '--device', 'cpu', '--yv_path', youtube_root, *size, '--output', output]
        assert eval_youtube.main([*map(str, words), *flags]) == 0
        return tree(output)

    return evaluate


def names(files):
    return sorted(name for name in files if name.endswith('.png'))


def test_frames_labels_and_first_frames(evaluate, youtube_root, tmp_path):
    files = evaluate(tmp_path / 'out')
    # Every fourth number, and those at which objects appear (8 and 14; in the second video 4 and 12).
    assert names(files) == (
        [f'Annotations/0a1b/{number:05d}.png' for number in (0, 4, 8, 12, 14, 16, 20)]
        + [f'Annotations/ff02/{number:05d}.png' for number in (4, 8, 12)]
    )
    for name in names(files):
        with Image.open(tmp_path / 'out' / name) as image:
            assert image.mode == 'P'
            assert image.size == ((182, 110) if '0a1b' in name else (150, 263))
            number = int(Path(name).stem) - (4 if 'ff02' in name else 0)
            assert set(np.unique(image)) <= {0} | {label for label, first in APPEARING.items() if 2 * first <= number}
    for number in (0, 8, 14):  # an annotated object is where its annotation says
        given = read_mask(youtube_root / 'valid/Annotations/0a1b' / f'{number:05d}.png')
        found = read_mask(tmp_path / 'out/Annotations/0a1b' / f'{number:05d}.png')
        label = given.max()
        assert ((found == label) == (given == label)).mean() > 0.97


def test_default_size_is_480(evaluate, youtube_root, tmp_path, monkeypatch):
    shapes = []
    original = eval_youtube.segment_videos

    def evaluate_spied(args, videos, dataset, **options):
        from model.stcn import STCN

        encode = STCN.encode_query
        monkeypatch.setattr(
            STCN, 'encode_query', lambda self, image: shapes.append(tuple(image.shape[2:])) or encode(self, image)
        )
        return original(args, [video for video in videos if video.name == 'ff02'], dataset, **options)

    monkeypatch.setattr(eval_youtube, 'segment_videos', evaluate_spied)
    evaluate(tmp_path / 'out', size=())
    # 263 x 150 upright: the longer side is floor(480 * 263 / 150) = 841, padded to multiples of 16.
    assert set(shapes) == {(848, 480)}


def test_output_all(evaluate, tmp_path):
    files = evaluate(tmp_path / 'some')
    everything = evaluate(tmp_path / 'all', '--output_all')
    assert len(names(everything)) == 12 + 6  # from the first annotated frame on
    assert all(everything[name] == files[name] for name in names(files))


def test_training_annotations_do_not_leak(evaluate, youtube_root, tmp_path):
    """With every frame annotated, as in a training split, only an object's first annotation is read."""
    expected = evaluate(tmp_path / 'out')
    folder = youtube_root / 'valid/Annotations/0a1b'
    for number in range(0, 24, 2):
        path = folder / f'{number:05d}.png'
        mask = read_mask(path) if path.exists() else np.zeros((110, 182), np.uint8)
        for label, first in APPEARING.items():
            if number > 2 * first:
                mask[:40, 10 * label : 10 * label + 10] = label  # wrong on purpose
        Image.fromarray(mask).save(path)
    assert names(tree(tmp_path / 'out')) == names(evaluate(tmp_path / 'again'))
    assert tree(tmp_path / 'again/Annotations') == {
        name.removeprefix('Annotations/'): content for name, content in expected.items() if name.endswith('.png')
    }


def test_archive_and_probabilities(evaluate, tmp_path):
    files = evaluate(tmp_path / 'out', '--zip', '--save_probs')
    with zipfile.ZipFile(tmp_path / 'out.zip') as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == names(files)
        assert all(archive.read(name) == files[name] for name in archive.namelist())
    for name in names(files):
        with np.load(tmp_path / 'out/probabilities' / Path(name).with_suffix('.npz')) as arrays:
            prob, objects = arrays['prob'], arrays['objects']
        assert prob.dtype == np.float16
        assert len(prob) == 1 + len(objects)
        mask = read_mask(tmp_path / 'out' / name)
        chosen = np.searchsorted([0, *objects], mask)
        assert np.isin(mask, [0, *objects]).all()
        # The most probable label, but for ties in half precision.
        assert (np.take_along_axis(prob, chosen[None], axis=0)[0] >= prob.max(axis=0) - 1e-3).all()


def test_flags_reach_the_core(evaluate, tmp_path, monkeypatch):
    seen = []

    class Spy(ensemble_module.InferenceCore):
        def __init__(self, network, config, **options):
            super().__init__(network, config, **options)
            seen.append((config, options))

    monkeypatch.setattr(ensemble_module, 'InferenceCore', Spy)
    evaluate(tmp_path / 'plain')
    evaluate(
        tmp_path / 'out',
        '--top',
        '7',
        '--mem_every',
        '3',
        '--include_last',
        '--max_memory_frames',
        '2',
        '--object_chunk',
        '1',
        '--amp',
        '--half_memory',
    )
    assert seen[0] == (InferenceConfig(size=SIZE), {'num_frames': 12, 'object_chunk': None, 'mirrored': False})
    assert seen[-1] == (
        InferenceConfig(
            top_k=7, mem_every=3, include_last=True, max_memory_frames=2, amp=True, half_memory=True, size=SIZE
        ),
        {'num_frames': 8, 'object_chunk': 1, 'mirrored': False},
    )
    seen.clear()
    evaluate(tmp_path / 'everything', '--top', '0', '--mem_every', 'none', '--kernel_sigma', '7')
    assert seen[0][0] == InferenceConfig(top_k=None, mem_every=None, kernel_sigma=7, size=SIZE)


def test_probabilities_have_the_objects_of_their_time(evaluate, tmp_path, monkeypatch):
    """Objects appear while earlier frames still wait to be written."""
    write = Probabilities.write
    monkeypatch.setattr(Probabilities, 'write', staticmethod(lambda *args: time.sleep(0.1) or write(*args)))
    evaluate(tmp_path / 'out', '--save_probs', '--output_all')
    for number in range(12):
        with np.load(tmp_path / 'out/probabilities/Annotations/0a1b' / f'{2 * number:05d}.npz') as arrays:
            assert arrays['objects'].tolist() == [label for label, first in APPEARING.items() if first <= number]
            assert len(arrays['prob']) == 1 + len(arrays['objects'])


def test_overwrite_leaves_nothing_of_before(evaluate, tmp_path):
    evaluate(tmp_path / 'out', '--output_all', '--save_probs')
    expected = evaluate(tmp_path / 'plain')
    assert evaluate(tmp_path / 'out', '--overwrite') == expected


def test_shares_are_balanced_and_complete(youtube_root):
    class Stub:
        def __init__(self, length):
            self.frames = [None] * length

    videos = [Stub(length) for length in (3, 50, 7, 20, 20, 9)]
    shares = [share(videos, rank, 3) for rank in range(3)]
    assert sorted(id(video) for taken in shares for video in taken) == sorted(map(id, videos))
    assert [sum(len(video.frames) for video in taken) for taken in shares] == [50, 29, 30]
    assert share(videos, 0, 1) != []


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda root: shutil.rmtree(root / 'all_frames'), 'JPEGImages: missing'),
        (lambda root: (root / 'valid/meta.json').unlink(), r'meta\.json: cannot read'),
        (lambda root: (root / 'valid/meta.json').write_text('{"videos": {'), r'meta\.json: expected'),
        (lambda root: (root / 'valid/meta.json').write_text('[]'), r'meta\.json: expected'),
        (lambda root: (root / 'valid/meta.json').write_text('{"videos": {}}'), 'lists no videos'),
        (
            lambda root: change_meta(root, lambda videos: videos.update({'../../out': videos['0a1b']})),
            'name of a video',
        ),
        (
            lambda root: change_meta(root, lambda videos: videos['0a1b']['objects']['2'].update(frames=[])),
            'at least one',
        ),
        (
            lambda root: change_meta(root, lambda videos: videos['0a1b']['objects']['2']['frames'].append('99999')),
            'are missing: 99999',
        ),
        (
            lambda root: change_meta(root, lambda videos: videos['0a1b']['objects']['2'].update(frames='00000')),
            'found something else .*00000',
        ),
        (
            lambda root: (root / 'valid/Annotations/0a1b/00008.png').unlink(),
            r'annotation of objects \(5,\) is missing',
        ),
        (
            lambda root: shutil.rmtree(root / 'all_frames/valid_all_frames/JPEGImages/0a1b'),
            'expected a folder of frames',
        ),
    ],
)
def test_incomplete_roots(youtube_root, damage, message):
    damage(youtube_root)
    with pytest.raises(DataError, match=message):
        youtube(youtube_root)


@pytest.mark.parametrize('listed', ['00000', '00004', '00010', '00014'])
def test_an_object_begins_where_its_mask_is(youtube_root, caplog, listed):
    """``meta.json`` may list a frame whose mask does not show the object, or one without a mask, earlier or later."""
    expected = [(frame.name, frame.objects) for frame in youtube(youtube_root)[0].frames if frame.mask]
    label, first = next((label, first) for label, first in APPEARING.items() if first)
    path = youtube_root / 'valid' / 'meta.json'
    meta = json.loads(path.read_text())
    meta['videos']['0a1b']['objects'][str(label)]['frames'].insert(0, listed)
    path.write_text(json.dumps(meta))
    [video, _] = youtube(youtube_root)
    assert [(frame.name, frame.objects) for frame in video.frames if frame.mask] == expected
    said = (
        f'{youtube_root}/valid/Annotations/0a1b: object {label} begins at {2 * first:05d}, where its mask is, '
        f'not at {listed}'
    )
    assert caplog.messages == ([said] if int(listed) < 2 * first else [])  # the order of the list does not count


def test_an_object_that_no_mask_shows(youtube_root, caplog):
    path = youtube_root / 'valid' / 'meta.json'
    meta = json.loads(path.read_text())
    meta['videos']['0a1b']['objects']['77'] = {'frames': ['00000']}
    path.write_text(json.dumps(meta))
    assert 77 in youtube(youtube_root)[0].frames[0].objects
    assert 'no mask shows object 77, which meta.json lists from 00000 on' in caplog.text


@pytest.fixture
def run_folder(small_checkpoint, capsys, caplog):
    """scripts/eval_folder.py in this process; returns the exit status, what it printed, and what it logged."""
    caplog.set_level('INFO')

    def run_folder(root, output, *flags):
        caplog.clear()
        words = ['--model', small_checkpoint, '--device', 'cpu', '--root', root, '--output', output, '--size', SIZE]
        status = eval_folder.main([*map(str, words), *flags])
        return status, capsys.readouterr().out, caplog.text

    return run_folder


def test_folder(folder_root, run_folder, tmp_path):
    assert run_folder(folder_root, tmp_path / 'out')[0] == 0
    files = tree(tmp_path / 'out')
    assert names(files) == (
        [f'cat/{number}.png' for number in range(5)] + sorted(f'dog/frame{number}.png' for number in range(9, 13))
    )
    assert set(np.unique(read_mask(tmp_path / 'out/dog/frame10.png'))) <= {0, 2}
    corrected = read_mask(tmp_path / 'out/dog/frame11.png')
    assert set(np.unique(corrected)) <= {0, 2, 255}
    assert (corrected[72:88, 104:178] == 255).mean() > 0.95
    assert (corrected[24:56, 34:76] == 2).mean() > 0.95

    assert '0 segmented, 2 finished before' in run_folder(folder_root, tmp_path / 'out')[1]
    assert tree(tmp_path / 'out') == files


def test_folder_of_one_video(folder_root, tmp_path):
    single = tmp_path / 'holiday'
    shutil.copytree(folder_root / 'JPEGImages/cat', single / 'JPEGImages')
    shutil.copytree(folder_root / 'Annotations/cat', single / 'Annotations')
    [video] = folder(single)
    assert (video.name, len(video.frames)) == ('holiday', 5)


def test_a_failing_video_is_reported_and_the_rest_goes_on(folder_root, run_folder, tmp_path):
    Image.new('RGB', (90, 50)).save(folder_root / 'JPEGImages/cat/3.jpeg')
    status, printed, _ = run_folder(folder_root, tmp_path / 'out', '--zip')
    assert status == 1
    assert '1 segmented, 0 finished before, 1 failed' in printed
    assert (
        f'failed: cat: {folder_root}/JPEGImages/cat/3.jpeg: image: expected the size of the frames before' in printed
    )
    assert len(list((tmp_path / 'out/dog').iterdir())) == 4
    assert not (tmp_path / 'out.zip').exists()


def test_given_masks_are_in_the_settings_and_not_scored(folder_root, run_folder, tmp_path):
    """The dog's second mask corrects object 2 and adds another one."""
    out = tmp_path / 'out'
    for flags, second in (((), [2, 255]), (('--first_only', '--overwrite'), [255])):
        assert 'the masks of 3 of 10 frames' in run_folder(folder_root, out, *flags)[2]
        given = json.loads((out / 'settings.json').read_text())['given']
        assert given == {'cat': {'0': [1, 2, 3]}, 'dog': {'frame9': [2], 'frame11': second}}
        if not flags:
            with pytest.raises(DataError, match='nothing to score'):
                score(out, folder_root, dataset='folder')
    assert score(out, folder_root, dataset='folder')['sequences'].keys() == {'dog'}


def test_masks_of_another_size(folder_root, run_folder, tmp_path):
    """One pixel narrower: resized with a warning. Another shape: an error that names the file."""
    path = folder_root / 'Annotations/cat/0.png'
    mask = Image.open(path)
    mask.resize((181, 110), Image.Resampling.NEAREST).save(path)
    status, _, logged = run_folder(folder_root, tmp_path / 'out')
    assert status == 0
    assert f'{path}: the mask is 181 x 110' in logged
    mask.resize((110, 110), Image.Resampling.NEAREST).save(path)
    with pytest.raises(DataError, match=f"{path}: expected a mask of its image's aspect ratio"):
        run_folder(folder_root, tmp_path / 'out', '--overwrite')


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda root: shutil.rmtree(root / 'Annotations'), 'Annotations: missing'),
        (lambda root: shutil.rmtree(root / 'Annotations/cat'), 'no masks of the frames'),
        (lambda root: (root / 'Annotations/cat/0.png').unlink(), 'no masks'),
        (lambda root: (root / 'Annotations/cat/0.png').rename(root / 'Annotations/cat/00.png'), 'without a frame'),
        (
            lambda root: shutil.copy(root / 'JPEGImages/cat/1.jpeg', root / 'JPEGImages/cat/1.jpg'),
            'one file per frame',
        ),
        (
            lambda root: [path.unlink() for path in (root / 'JPEGImages/cat').iterdir()],
            'expected frames of a video .*, found nothing',
        ),
        (lambda root: [shutil.rmtree(path) for path in (root / 'JPEGImages').iterdir()], 'of frames, found nothing'),
    ],
)
def test_incomplete_folders(folder_root, damage, message):
    damage(folder_root)
    with pytest.raises(DataError, match=message):
        folder(folder_root)
