"""Masks into and out of a session: every format that the scripts take, zips that restore it, and hostile ones."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.io import DataError, write_binary_mask, write_mask
from inference.clip import Clip
from inference.session import Session
from inference.session_masks import RECORD, import_masks, object_name, write_masks
from tests.conftest import FRAMES, tree

LIMIT = {'max_bytes': 10**7}
NAMES = [path.stem for path in FRAMES]


def state_of(session) -> tuple:
    return tree(session.folder / 'masks'), session.painted, session.confidence, session.names


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def png(labels: np.ndarray, folder: Path) -> bytes:
    write_mask(folder / 'a_mask.png', labels)
    return (folder / 'a_mask.png').read_bytes()


def test_a_session_goes_on_in_another_tab(session, labels, small_network, tmp_path):
    session.paint(2, labels)
    session.paint(7, np.where(labels == 3, 0, labels).astype(np.uint8))
    for _ in session.propagate(2):
        pass
    session.rename(2, 'black swan')
    session.add_object('not painted yet')
    assert write_masks(session, tmp_path / 'work.zip') == 10
    with zipfile.ZipFile(tmp_path / 'work.zip') as archive:
        assert archive.namelist() == [*(f'{name}.png' for name in NAMES[2:]), RECORD]
    write_masks(session, tmp_path / 'again.zip')
    assert (tmp_path / 'work.zip').read_bytes() == (tmp_path / 'again.zip').read_bytes()

    other = Session(small_network, Clip.of_images(FRAMES), tmp_path / 'other')
    other.paint(0, np.full_like(labels, 9))  # the import replaces it
    assert import_masks(other, [tmp_path / 'work.zip'], 0, **LIMIT) == list(range(2, 12))
    assert state_of(other) == state_of(session)
    assert not (other.folder / 'import').exists()
    write_masks(other, tmp_path / 'work.zip')
    assert (tmp_path / 'work.zip').read_bytes() == (tmp_path / 'again.zip').read_bytes()
    other.undo()
    assert other.painted == {0: {9}}
    assert other.masked() == [0]


def test_masks_named_like_frames(session, labels, tmp_path):
    for name in (NAMES[0], NAMES[5]):
        write_mask(tmp_path / f'{name}.png', labels)
    assert import_masks(session, [tmp_path / f'{NAMES[5]}.png'], 3, **LIMIT) == [5]
    files = {f'masks/{NAMES[9]}.png': png(labels, tmp_path), f'masks/{NAMES[0]}.png': png(0 * labels, tmp_path)}
    assert import_masks(session, [zipped(tmp_path / 'm.zip', files)], 3, **LIMIT) == [0, 9]
    assert session.painted == {0: frozenset(), 5: {1, 2, 3}, 9: {1, 2, 3}}
    assert np.array_equal(session.labels(5), labels)
    session.undo()
    assert session.painted == {5: {1, 2, 3}}


def test_masks_for_the_frame_shown(session, labels, tmp_path):
    """The masks are one file with all objects in a tool's own colours, and then a file for each object by its name."""
    colours = np.array([[0, 0, 0], [250, 10, 20], [3, 200, 9], [40, 50, 240]], np.uint8)
    Image.fromarray(colours[labels]).save(tmp_path / 'export.bmp')
    assert import_masks(session, [tmp_path / 'export.bmp'], 4, **LIMIT) == [4]
    assert {tuple(np.unique(session.labels(4) == label, return_counts=True)[1]) for label in (1, 2, 3)} == {
        tuple(np.unique(labels == label, return_counts=True)[1]) for label in (1, 2, 3)
    }
    for label, name in ((1, 'cat'), (3, 'a dog')):
        write_binary_mask(tmp_path / f'{name}.png', (labels == label).astype(np.uint8))
    assert import_masks(session, [tmp_path / 'cat.png', tmp_path / 'a dog.png'], 6, **LIMIT) == [6]
    assert session.names == {1: 'a dog', 2: 'cat', 3: ''}
    assert np.array_equal(session.labels(6), np.choose(labels, [0, 2, 0, 1]))


def test_a_folder_of_masks_an_object(session, labels, tmp_path):
    files = {}
    for label, name in ((1, 'cat'), (2, 'dog')):
        for frame in (0, 8):
            write_binary_mask(tmp_path / 'one.png', (labels == label).astype(np.uint8))
            files[f'export/{name}/{NAMES[frame]}.png'] = (tmp_path / 'one.png').read_bytes()
    assert import_masks(session, [zipped(tmp_path / 'm.zip', files)], 3, **LIMIT) == [0, 8]
    assert np.array_equal(session.labels(8), labels * (labels < 3))
    assert session.names == {1: 'cat', 2: 'dog'}


def test_masks_of_another_scale_and_many_objects(session, labels, tmp_path, caplog):
    many = (40 * labels + 60 * (labels > 0)).astype(np.uint8)
    Image.fromarray(many.repeat(2, 0).repeat(2, 1)).save(tmp_path / 'large.png')
    import_masks(session, [tmp_path / 'large.png'], 0, **LIMIT)
    assert np.array_equal(session.labels(0), many)
    assert session.names.keys() == {100, 140, 180}
    assert 'resized by nearest neighbour' in caplog.text


def record(**changes) -> bytes:
    return json.dumps({'painted': [], 'objects': {}, 'confidence': {}} | changes).encode()


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        ({'a.png': 'MASK', f'{NAMES[1]}.png': 'MASK'}, 'found no frame for a.png'),
        ({f'{NAMES[1]}.png': 'MASK', f'{NAMES[1]}.gif': 'MASK'}, 'expected one file per frame'),
        ({f'a/{NAMES[1]}.png': 'MASK', f'b/a/{NAMES[1]}.png': 'MASK'}, f'two masks are called {NAMES[1]}.png'),
        ({f'a/{NAMES[1]}.png': 'MASK', f'{NAMES[2]}.png': 'MASK'}, 'or one for each object, found both'),
        ({f'{NAMES[1]}.png': b'no image'}, rf'^{NAMES[1]}.png: expected an image, cannot read it'),
        ({f'{NAMES[1]}.png': 'EMPTY'}, 'expected a mask that shows an object'),
        ({f'{NAMES[1]}.png': 'OTHER'}, 'aspect ratio'),
        ({f'{NAMES[1]}.png': 'LARGE'}, '10000 x 5000 is more than'),
        ({'a.txt': b'x'}, 'm.zip: no masks in it'),
        ({'a\\b.png': 'MASK'}, 'expected the name'),
        (
            {f'{NAMES[1]}.png': 'MASK', RECORD: b'{'},
            'session.json: expected the record of a session, found something else',
        ),
        ({f'{NAMES[1]}.png': 'MASK', RECORD: b'[' * 10**5}, 'session.json: expected the record of a session'),
        ({f'{NAMES[1]}.png': 'MASK', RECORD: b'[1, 2, 3]'}, 'session.json: expected the record of a session'),
        ({f'{NAMES[1]}.png': 'MASK', RECORD: record(painted=7)}, 'session.json: expected the record of a session'),
        ({f'{NAMES[1]}.png': 'MASK', RECORD: record(painted=[NAMES[2]])}, f'without a mask: {NAMES[2]}'),
        ({f'{NAMES[1]}.png': 'MASK', RECORD: record(objects={'0': 'x'})}, 'values out of their range'),
        (
            {f'{NAMES[1]}.png': 'MASK', RECORD: record(confidence={NAMES[1]: {'1': float('nan')}})},
            'out of their range',
        ),
        ({'a.png': 'MASK', RECORD: record()}, 'no frames for a'),
        ({f'{NAMES[1]}.png': 'OTHER', RECORD: record()}, 'expected the size of the clip'),
        ({f'{NAMES[1]}.png': 'MASK', f'{NAMES[2]}.png': b'x', RECORD: record()}, 'expected an image'),
    ],
)
def test_zips_that_are_refused_change_nothing(session, labels, tmp_path, files, message):
    session.paint(3, labels)
    before = state_of(session)
    (tmp_path / 'made').mkdir()
    Image.new('1', (10000, 5000)).save(tmp_path / 'made' / 'large.png')
    contents = {
        'MASK': png(labels, tmp_path / 'made'),
        'EMPTY': png(0 * labels, tmp_path / 'made'),
        'OTHER': png(labels[:50], tmp_path / 'made'),
        'LARGE': (tmp_path / 'made' / 'large.png').read_bytes(),
    }
    path = zipped(tmp_path / 'm.zip', {name: contents.get(content, content) for name, content in files.items()})
    with pytest.raises(DataError, match=message) as error:
        import_masks(session, [path], 0, **LIMIT)
    assert str(tmp_path) not in str(error.value)
    assert state_of(session) == before
    assert session.undo() == 'the mask of frame 3'
    assert not (session.folder / 'import').exists()


def test_masks_stay_in_their_folder_and_in_bounds(session, labels, tmp_path):
    outside = tree(tmp_path)
    files = {f'../../{NAMES[1]}.png': png(labels, tmp_path), f'/etc/../../{NAMES[2]}.png': png(labels, tmp_path)}
    with pytest.raises(DataError, match=r'expected the name|one per object'):
        import_masks(session, [zipped(tmp_path / 'm.zip', files)], 0, **LIMIT)
    files = {f'../../{name}': content for name, content in ((f'{NAMES[1]}.png', png(labels, tmp_path)),)}
    assert import_masks(session, [zipped(tmp_path / 'm.zip', files)], 0, **LIMIT) == [1]
    assert set(tree(tmp_path)) - set(outside) == {'a_mask.png', f'session/masks/{NAMES[1]}.png'}
    with zipfile.ZipFile(tmp_path / 'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f'{NAMES[1]}.png', bytes(5 * 10**6))
    with pytest.raises(DataError, match='10 times the largest upload'):
        import_masks(session, [tmp_path / 'bomb.zip'], 0, max_bytes=10**5)
    with zipfile.ZipFile(tmp_path / 'many.zip', 'w') as archive:
        for number in range(300):
            archive.writestr(f'{number}.png', b'')
    with pytest.raises(DataError, match='10 times the largest upload'):
        import_masks(session, [tmp_path / 'many.zip'], 0, max_bytes=10**5)


def test_uploads_beside_each_other(session, labels, tmp_path):
    write_mask(tmp_path / 'a' / '1.png', labels)
    shutil.copytree(tmp_path / 'a', tmp_path / 'b')
    with pytest.raises(DataError, match=r'two files are called 1\.png'):
        import_masks(session, [tmp_path / 'a' / '1.png', tmp_path / 'b' / '1.png'], 0, **LIMIT)
    write_mask(tmp_path / '1.png', labels)
    files = [zipped(tmp_path / 'm.zip', {'1.png': png(labels, tmp_path)}), tmp_path / '1.png']
    with pytest.raises(DataError, match='expected one zip, or masks'):
        import_masks(session, files, 0, **LIMIT)


def test_nothing_to_write(session, tmp_path):
    with pytest.raises(DataError, match='no masks yet'):
        write_masks(session, tmp_path / 'masks.zip')
    assert not (tmp_path / 'masks.zip').exists()


def test_names():
    assert object_name('  a\nblack \t swan\x00 ') == 'a black swan'
    assert len(object_name('x' * 100)) == 40
