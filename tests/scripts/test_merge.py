"""scripts/merge.py: the mean of separate runs is the ensemble that one process would give."""

import functools
import json
import shutil
import zipfile

import numpy as np
import pytest

import eval_davis
import eval_youtube
from dataset.io import DataError, read_mask
from inference.merge import read_content, read_probabilities
from inference.outputs import OutputError
from inference.scoring import score_results
from model import save_network
from scripts import eval_folder, merge
from scripts.evaluate import DATASETS
from tests.conftest import make_davis_val, make_small_network, tree


@pytest.fixture(scope='module')
def networks(tmp_path_factory, resnet_checkpoint):
    """Two networks that disagree about a third of all pixels."""
    other = tmp_path_factory.mktemp('other') / 'other.pth'
    network = make_small_network(key_dim=8)
    save_network(other, network)
    return str(resnet_checkpoint), str(other)


@pytest.fixture(scope='module')
def evaluated(networks, tmp_path_factory):
    """Evaluates networks by eval_davis.py, the same ones only once. Tests that change the output copy it before."""
    davis_root = make_davis_val(tmp_path_factory.mktemp('data'))

    @functools.cache
    def evaluated(*models, flags=()):
        output = tmp_path_factory.mktemp('evaluated') / 'masks'
        words = ['--model', *models, '--device', 'cpu', '--davis_path', davis_root, '--output', output, *flags]
        assert eval_davis.main([str(word) for word in [*words, '--save_probs']]) == 0
        return output

    return evaluated


@pytest.fixture
def runs(networks, evaluated, tmp_path):
    """The output folders of runs with each of the networks, and with both of them."""

    def runs(*flags):
        models = {'a': networks[:1], 'b': networks[1:], 'both': networks}
        return [shutil.copytree(evaluated(*each, flags=flags), tmp_path / name) for name, each in models.items()]

    return runs


@pytest.fixture
def a(networks, evaluated, tmp_path):
    """The output folder of a run with one network."""
    return shutil.copytree(evaluated(networks[0]), tmp_path / 'a')


def merged(*folders, flags=()):
    *results, output = folders
    assert merge.main([*map(str, results), '--output', str(output), *flags]) == 0
    return {name: content for name, content in tree(output).items() if name.endswith('.png')}


@pytest.mark.parametrize('flags', [(), ('--size', '64', '--flip', '--include_last')])
def test_equals_the_ensemble_of_one_process(runs, tmp_path, flags):
    a, b, both = runs(*flags)
    masks = merged(a, b, tmp_path / 'ab')
    assert masks.keys() == {name for name in tree(both) if name.endswith('.png')}
    different = pixels = 0
    for name in masks:
        found, expected = read_mask(tmp_path / 'ab' / name), read_mask(both / name)
        assert not np.array_equal(read_mask(a / name), expected) or name.endswith('/00000.png')
        top = np.sort(read_probabilities((both / 'probabilities' / name).with_suffix('.npz')), axis=0)[-2:]
        assert np.abs(top[1] - top[0])[found != expected].max(initial=0) < 1e-3  # nearly a tie
        different, pixels = different + np.count_nonzero(found != expected), pixels + found.size
    assert different < 5e-3 * pixels


def test_grayscale_of_davis_2016(runs, tmp_path):
    a, b, _ = runs('--year', '2016')
    masks = merged(a, b, tmp_path / 'ab')
    assert len(masks) == 12
    for name in masks:
        assert set(np.unique(read_mask(tmp_path / 'ab' / name))) <= {0, 1}
        assert (tmp_path / 'ab' / name).read_bytes()[25] == 0  # the PNG's colour type
    assert json.loads((tmp_path / 'ab/settings.json').read_text())['format'] == 'grayscale 0 and 255'


def test_continues_and_archives(runs, tmp_path, capsys):
    a, b, _ = runs()
    expected = merged(a, b, tmp_path / 'ab')
    assert '12 merged' in capsys.readouterr().out
    kept = tmp_path / 'ab/goat/00002.png'
    before = kept.stat().st_mtime_ns
    (tmp_path / 'ab/dog/00003.png').unlink()
    assert merged(a, b, tmp_path / 'ab', flags=['--zip']) == expected
    assert '1 merged' in capsys.readouterr().out
    assert kept.stat().st_mtime_ns == before
    with zipfile.ZipFile(tmp_path / 'ab.zip') as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == expected

    with pytest.raises(OutputError, match=r'other settings .*; overwrite them or choose another place'):
        merge.main([str(a), str(tmp_path / 'both'), '--output', str(tmp_path / 'ab')])
    with pytest.raises(OutputError, match='the run reads this and would also write there'):
        merge.main([str(a), str(b), '--output', str(a), '--overwrite'])
    assert merged(a, tmp_path / 'both', tmp_path / 'ab', flags=['--overwrite']) != expected


def test_youtube_and_what_was_given(networks, youtube_root, folder_root, tmp_path):
    for output, model in zip(('a', 'b'), networks, strict=True):
        words = ['--model', model, '--device', 'cpu', '--size', '96', '--save_probs', '--output']
        assert eval_youtube.main([*words, str(tmp_path / 'y' / output), '--yv_path', str(youtube_root)]) == 0
        assert eval_folder.main([*words, str(tmp_path / 'f' / output), '--root', str(folder_root)]) == 0
    masks = merged(tmp_path / 'y/a', tmp_path / 'y/b', tmp_path / 'y/ab')
    assert {name.split('/')[0] for name in masks} == {'Annotations'}
    assert len(masks) == 10
    merged(tmp_path / 'f/a', tmp_path / 'f/b', tmp_path / 'f/ab')
    truths, _ = DATASETS['folder'](folder_root, None)
    with pytest.raises(DataError, match='nothing to score'):  # all its masks were given to the networks
        score_results(truths, tmp_path / 'f/ab')


def damage(path, **changes):
    with np.load(path) as arrays:
        arrays = dict(arrays) | changes
    with open(path, 'wb') as file:
        np.savez_compressed(file, **arrays)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda b: (b / 'probabilities/dog/00002.npz').unlink(),
            r'b/prob\w+: expected the 12 frames of .*/a, 1 are missing: dog/00002$',
        ),
        (
            lambda b: shutil.copytree(b / 'probabilities/dog', b / 'probabilities/cat'),
            r'a/probabilities: expected the 19 .* 7 are missing: cat/00000, ',
        ),
        (
            lambda b: damage(b / 'probabilities/dog/00002.npz', objects=np.array([1, 2, 7])),
            r'b/.*/dog/00002.npz: expected 182 x 110 pixels with the objects 1, 2, 3 .* 1, 2, 7$',
        ),
        (
            lambda b: damage(b / 'probabilities/dog/00002.npz', prob=np.zeros((4, 110, 180), np.float16)),
            r'found 180 x 110 pixels',
        ),
        (
            lambda b: damage(b / 'probabilities/dog/00002.npz', prob=np.zeros((3, 110, 182), np.float16)),
            r'b/probabilities/dog/00002.npz: expected prob',
        ),
        (
            lambda b: (b / 'probabilities/dog/00002.npz').write_bytes(b'PK'),
            r'b/probabilities/dog/00002.npz: expected prob .* Delete the file',
        ),
        (lambda b: shutil.rmtree(b / 'probabilities'), r'b/probabilities: expected <video>/<frame>.npz, found none'),
        (lambda b: (b / 'settings.json').unlink(), r'b/settings.json: expected the settings'),
        (
            lambda b: (b / 'settings.json').write_text('{"format": "grayscale 0 and 255"}'),
            r'b/settings.json: .* another "format"',
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(a, tmp_path, change, message):
    shutil.copytree(a, tmp_path / 'b')
    change(tmp_path / 'b')
    with pytest.raises(DataError, match=message) as error:
        merge.main([str(a), str(tmp_path / 'b'), '--output', str(tmp_path / 'ab')])
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'ab').exists()


def test_one_run_or_the_same_twice(a, tmp_path, capsys):
    with pytest.raises(DataError, match='a: expected every run once, found it twice'):
        merge.main([str(a), str(a / '.'), '--output', str(tmp_path / 'ab')])
    with pytest.raises(SystemExit):
        merge.main([str(a), '--output', str(tmp_path / 'ab')])
    assert 'expected two RESULTS or more' in capsys.readouterr().err


def test_damage_beyond_the_header(a, tmp_path):
    shutil.copytree(a, tmp_path / 'b')
    path = tmp_path / 'b/probabilities/goat/00003.npz'
    assert read_content(path).objects == (1, 2, 3)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r'b/probabilities/goat/00003.npz: expected prob .* cannot read them'):
        merge.main([str(a), str(tmp_path / 'b'), '--output', str(tmp_path / 'ab')])
    assert not (tmp_path / 'ab/goat/00003.png').exists()
