"""scripts/check_submission.py: what a server would refuse, of folders and archives; and the runs that end with it."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

import eval_davis
import eval_youtube
from dataset.davis import davis
from dataset.io import DataError, read_mask, write_binary_mask, write_mask
from dataset.youtube import youtube
from inference.submission import check_submission
from scripts import check_submission as script
from tests.conftest import tree


def write_masks(videos, folder):
    """Write masks that a server would take: the first mask of each video, for every frame that is asked for."""
    for video in videos:
        first = next(frame for frame in video.frames if frame.mask is not None)
        with Image.open(first.image) as image:
            mask = video.read_mask(first, image.size[::-1])
        for frame in video.frames:
            if frame.wanted:
                write = write_binary_mask if video.binary else write_mask
                write(folder / video.folder / f'{frame.name}.png', mask)
    return folder


def pack(folder, *, top='', without=''):
    """Zip a folder. In the zip, each name has ``top`` in place of its beginning ``without``."""
    path = folder.with_suffix('.zip')
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in tree(folder).items():
            archive.writestr(top + name.removeprefix(without), content)
    return path


@pytest.fixture(params=['davis2017', 'davis2016', 'youtube'])
def good(request, tmp_path):
    """A dataset's name and root, its videos, and a folder of masks that nothing is wrong with."""
    root = request.getfixturevalue('youtube_root' if request.param == 'youtube' else 'davis_root')
    videos = script.DATASETS[request.param](root, None)
    return request.param, root, videos, write_masks(videos, tmp_path / 'out')


@pytest.fixture
def out(davis_root, tmp_path):
    return write_masks(davis(davis_root), tmp_path / 'out')


@pytest.fixture
def causes(davis_root):
    return lambda place: check_submission(place, davis(davis_root))


def test_nothing_is_wrong(good, capsys):
    dataset, root, videos, folder = good
    (folder / 'settings.json').write_text('{}')
    (folder / 'probabilities' / 'dog').mkdir(parents=True)
    shutil.copy(next(folder.rglob('*.png')), folder / 'probabilities' / 'dog' / '00000.png')
    assert script.main([str(folder), '--dataset', dataset, '--root', str(root)]) == 0
    count = sum(frame.wanted for video in videos for frame in video.frames)
    assert capsys.readouterr().out == f'no problems found in {count} masks of 2 videos\n'
    (folder / 'settings.json').unlink()
    shutil.rmtree(folder / 'probabilities')
    assert check_submission(pack(folder), videos) == []


def test_layout_of_an_archive(good):
    _, _, videos, folder = good
    top = videos[0].folder.removesuffix(videos[0].name)
    found = check_submission(pack(folder, top='results/'), videos)
    assert found == [f'layout: expected {top}<video>/<frame>.png, found results/{top}<video>/<frame>.png']
    if top:
        found = check_submission(pack(folder, without=top), videos)
        assert found == ['layout: expected Annotations/<video>/<frame>.png, found <video>/<frame>.png']
    else:
        found = check_submission(pack(folder, top='Annotations/'), videos)
        assert found == ['layout: expected <video>/<frame>.png, found Annotations/<video>/<frame>.png']


def test_other_format(good):
    dataset, _, videos, folder = good
    names = sorted(folder.rglob('*.png'))
    if dataset == 'davis2016':
        write_mask(names[1], (read_mask(names[1]) > 0).astype(np.uint8))
        expected = '1 mask of another format than a grayscale PNG of 0 and 255: dog/00001.png (palette)'
    else:
        Image.fromarray(read_mask(names[1])).save(names[1])
        expected = f'1 mask of another format than a palette PNG: {names[1].relative_to(folder)} (grayscale)'
    assert check_submission(folder, videos) == [expected]


def test_values_of_2016(davis_root, tmp_path):
    videos = davis(davis_root, year=2016)
    folder = write_masks(videos, tmp_path / 'out')
    Image.fromarray(read_mask(folder / 'goat/00002.png')).save(folder / 'goat/00002.png')  # 0 and 1, not 0 and 255
    assert check_submission(folder, videos) == ['1 mask with values other than 0 and 255: goat/00002.png (1)']


def test_missing_and_too_many(out, causes, tmp_path):
    for frame in (1, 3, 5):
        (out / f'dog/{frame:05d}.png').unlink()
    shutil.copy(out / 'dog/00000.png', out / 'dog/00007.png')
    shutil.copytree(out / 'dog', out / 'cat')
    assert causes(out) == [
        '1 video too many: cat',
        '3 frames missing: dog/00001.png, dog/00003.png, dog/00005.png',
        '1 frame too many: dog/00007.png',
    ]
    shutil.rmtree(out / 'goat')
    assert causes(pack(out))[0] == '1 video missing: goat'
    (tmp_path / 'empty').mkdir()
    assert causes(tmp_path / 'empty') == ['2 videos missing: dog, goat']


def test_other_files_of_an_archive(out, causes, tmp_path):
    (out / 'settings.json').write_text('{}')
    (out / 'dog' / 'Thumbs.db').write_bytes(b'')
    shutil.copy(out / 'dog/00000.png', out / 'first.png')
    assert causes(pack(out)) == [
        '3 files not of the form <video>/<frame>.png: dog/Thumbs.db, first.png, settings.json',
    ]
    (out / 'first.png').unlink()
    assert causes(out) == []
    shutil.rmtree(out / 'goat')
    with pytest.warns(UserWarning, match='Duplicate'), zipfile.ZipFile(pack(out), 'a') as archive:
        archive.writestr('dog/00001.png', (out / 'dog/00001.png').read_bytes())
    assert '1 file in it twice: dog/00001.png' in causes(tmp_path / 'out.zip')


def test_sizes_labels_and_damage(out, causes, davis_root):
    write_mask(out / 'dog/00002.png', read_mask(out / 'dog/00002.png')[:, 1:])
    strange = read_mask(out / 'goat/00001.png')
    strange[:9, :9] = 9
    write_mask(out / 'goat/00001.png', strange)
    (out / 'goat/00003.png').write_bytes((out / 'goat/00003.png').read_bytes()[:-40])
    (out / 'dog/00004.png').write_bytes(b'nothing')
    Image.fromarray(strange).save(out / 'dog/00005.png', format='JPEG')
    expected = [
        '1 mask of another size than the frames: dog/00002.png (181 x 110, not 182 x 110)',
        '1 mask with labels that the first masks do not have: goat/00001.png (9)',
    ]
    found = causes(out)
    assert found[0::2] == expected
    assert found[1].startswith(
        '3 masks that cannot be read as PNG: dog/00004.png (cannot identify image file), dog/00005.png '
    )
    assert causes(pack(out))[0::2] == expected
    # Without the check of the labels, only the header of each mask is read.
    quick = check_submission(out, davis(davis_root), every_label=False)
    assert [line.split(':')[0] for line in quick] == [
        '1 mask of another size than the frames',
        '2 masks that cannot be read as PNG',
    ]


@pytest.mark.parametrize('name', ['absent', 'text.zip'])
def test_neither_folder_nor_archive(causes, tmp_path, name):
    (tmp_path / 'text.zip').write_text('text')
    with pytest.raises(DataError, match=rf'{name}: expected a folder of masks or a zip archive'):
        causes(tmp_path / name)


def test_exit_status(out, davis_root, capsys):
    (out / 'dog/00001.png').unlink()
    assert script.main([str(out), '--dataset', 'davis2017', '--root', str(davis_root)]) == 1
    assert capsys.readouterr().out == '1 frame missing: dog/00001.png\n'


# The end of a run


@pytest.mark.parametrize('flags', [(), ('--zip',)])
def test_youtube_ends_with_it(youtube_root, small_checkpoint, tmp_path, capsys, flags):
    words = ['--model', small_checkpoint, '--device', 'cpu', '--size', 64, '--yv_path', youtube_root]
    words = [str(word) for word in [*words, '--output', tmp_path / 'out', *flags]]
    assert eval_youtube.main(words) == 0
    assert 'server' not in capsys.readouterr().out
    assert check_submission(tmp_path / 'out', youtube(youtube_root)) == []
    (tmp_path / 'out/Annotations/extra').mkdir()
    shutil.copy(tmp_path / 'out/Annotations/0a1b/00000.png', tmp_path / 'out/Annotations/extra/00000.png')
    assert eval_youtube.main(words) == (0 if flags else 1)  # the archive has the masks of this run alone
    refused = 'a server would not take the masks: 1 video too many: extra\n'
    assert capsys.readouterr().out.endswith('' if flags else refused)
    assert eval_youtube.main([*words[:-1], str(tmp_path / 'all'), '--output_all'] if not flags else words) == 0


def test_davis_ends_with_it_where_there_is_a_server(davis_root, small_checkpoint, tmp_path, capsys):
    def evaluate(*flags):
        words = ['--model', small_checkpoint, '--device', 'cpu', '--size', 64, '--davis_path', davis_root]
        return eval_davis.main([str(word) for word in [*words, '--output', tmp_path / flags[-1], *flags]])

    for split in ('val', 'testdev'):
        extra = tmp_path / split / 'extra'
        if split == 'testdev':
            shutil.move(davis_root / 'trainval', davis_root / 'test-dev')
            image_sets = davis_root / 'test-dev/ImageSets/2017'
            shutil.move(image_sets / 'val.txt', image_sets / 'test-dev.txt')
        assert evaluate('--split', split) == 0
        extra.mkdir()
        shutil.copy(tmp_path / split / 'dog/00000.png', extra / '00000.png')
    assert evaluate('--split', 'testdev') == 1
    assert capsys.readouterr().out.endswith('would not take the masks: 1 video too many: extra\n')
    assert json.loads((tmp_path / 'testdev/settings.json').read_text())['split'] == 'testdev'
