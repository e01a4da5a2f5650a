"""Which files are the masks of which frames, what folders of frames and masks may hold, and videos made of them."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.folder import folder
from dataset.io import PALETTE, DataError, image_size, list_frames, read_image
from dataset.mask_files import FrameMasks, GivenMask, list_masks, match_masks

NAMES = [f'{number:05d}' for number in range(6)]
SHAPE = (24, 36)
CASES = Path('/work/shared/cases')


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.INFO)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def given(*files: Path | str, frame: int | None = None, label: int | None = None) -> GivenMask:
    return GivenMask(tuple(map(Path, files)), frame, label)


def places(masks: list[FrameMasks]) -> dict[int, object]:
    """Frame -> the name of its file, or object -> name."""
    return {
        each.frame: each.files[0].name
        if each.objects is None
        else {label: path.name for label, path in zip(each.objects, each.files, strict=True)}
        for each in masks
    }


def labels(*boxes: int) -> np.ndarray:
    """Squares of these labels, side by side."""
    mask = np.zeros(SHAPE, np.uint8)
    for place, label in enumerate(boxes):
        mask[4:18, 3 + 11 * place : 12 + 11 * place] = label
    return mask


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


# Matching


@pytest.mark.parametrize(
    ('name', 'frame'),
    [('00004.png', 4), ('00000.png', 0), ('00005.tif', 5), ('4.png', 0), ('first.png', 0), ('00009.png', 0)],
)
def test_a_single_file_belongs_to_the_frame_of_its_name_or_the_first(tmp_path, caplog, name, frame):
    touch(tmp_path, name)
    assert places(match_masks([given(tmp_path / name)], NAMES)) == {frame: name}
    assert (': the mask of frame' in caplog.text) == (frame > 0)


@pytest.mark.parametrize(
    ('name', 'names', 'meant'),
    [
        ('4.png', NAMES, 4),
        ('0004.png', NAMES, 4),
        ('00004_mask.png', NAMES, 4),
        ('mask.00003.png', NAMES, 3),
        ('frame_4.png', NAMES, 4),
        ('00004.png', None, 4),
        ('frame_0042.png', None, 42),
        ('2-of-3.png', None, None),
        ('0.png', NAMES, None),
        ('00000_mask.png', NAMES, None),
        ('00000.png', None, None),
        ('dog4.png', NAMES, None),
        ('dog4.png', None, None),
        ('00003_00004.png', NAMES, None),
    ],
)
def test_a_name_much_like_that_of_a_frame_is_told(tmp_path, caplog, name, names, meant):
    touch(tmp_path, name)
    assert places(match_masks([given(tmp_path / name)], names)) == {0: name}
    expected = f'taken for the mask of frame 0, .* give it as {meant}={tmp_path}/{name}$'
    assert re.search(expected, caplog.text, re.MULTILINE) if meant else not caplog.text


@pytest.mark.parametrize('frame', [0, 1, 5])
def test_a_frame_that_is_said_wins(tmp_path, caplog, frame):
    touch(tmp_path, '00004.png')
    assert places(match_masks([given(tmp_path / '00004.png', frame=frame)], NAMES)) == {frame: '00004.png'}
    assert places(match_masks([given(tmp_path / '00004.png', frame=frame, label=7)], NAMES)) == {
        frame: {7: '00004.png'}
    }
    assert not caplog.records


@pytest.mark.parametrize('names', [NAMES, None])
def test_files_joined_by_commas_are_never_matched_by_name(tmp_path, names):
    touch(tmp_path, '00003.png', '00004.png')
    files = [tmp_path / '00004.png', tmp_path / '00003.png']
    assert places(match_masks([given(*files)], names)) == {0: {1: '00004.png', 2: '00003.png'}}
    assert places(match_masks([given(*files, frame=2, label=5)], names)) == {2: {5: '00004.png', 6: '00003.png'}}


@pytest.mark.parametrize('files', [['00000.png'], ['00001.png', '00004.gif'], ['00005.png', '00002.bmp', '00003.TIF']])
def test_masks_of_a_folder_a_pattern_or_a_list_belong_to_the_frames_of_their_names(tmp_path, files):
    touch(tmp_path / 'masks', *files)
    expected = {int(Path(name).stem): name for name in sorted(files)}
    for masks in (
        [given(tmp_path / 'masks')],
        [given(tmp_path / 'masks' / '*')],
        [given(tmp_path / 'masks' / name) for name in files],
    ):
        found = match_masks(masks, NAMES)
        assert places(found) == expected
        assert [each.frame for each in found] == sorted(expected)


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    touch(tmp_path, '0000[4].png', '00004.png')
    assert places(match_masks([given(tmp_path / '0000[4].png')], NAMES)) == {0: '0000[4].png'}


@pytest.mark.parametrize('names', [['1', '2', '3'], ['001', '002', '003']])
def test_folders_of_masks_in_a_folder_are_objects(tmp_path, names, caplog):
    touch(tmp_path / 'masks', *(f'{name}/00001.png' for name in names), f'{names[1]}/00004.png')
    expected = {1: {1: '00001.png', 2: '00001.png', 3: '00001.png'}, 4: {2: '00004.png'}}
    for masks in ([given(tmp_path / 'masks')], [given(tmp_path / 'masks' / name) for name in names]):
        found = match_masks(masks, NAMES)
        assert places(found) == expected
        assert all(each.binary for each in found)
    assert not caplog.records


@pytest.mark.parametrize(
    ('names', 'numbers'),
    [(['dog', 'cat'], [2, 1]), (['000', '001'], [1, 2]), (['7', '300'], [1, 2]), (['7', '12'], [7, 12]), (['9'], [9])],
)
def test_folders_of_objects_with_other_names(tmp_path, caplog, names, numbers):
    touch(tmp_path / 'masks', *(f'{name}/00002.png' for name in names))
    [found] = match_masks([given(tmp_path / 'masks')], NAMES)
    for name, number in zip(names, numbers, strict=True):
        assert found.files[found.objects.index(number)].parent.name == name
        assert (f'{name} is object {number}' in caplog.text) == (names not in (['7', '12'], ['9']))


@pytest.mark.parametrize(
    ('files', 'said', 'message'),
    [
        (
            ['00001.png', 'x.png'],
            ['00001.png', 'x.png'],
            r'named like frames \(00000, .* and 1 more\), found .*x\.png',
        ),
        (['m/00001.png', 'm/6.png', 'm/7.png'], ['m'], r'named like frames .*6\.png, .*7\.png\. Rename'),
        (['m/1/00001.png', 'm/2/6.png'], ['m'], r'named like frames .*2/6\.png'),
        (['m/readme.txt'], ['m'], r'm: expected masks \(\.png .*\), found none'),
        (['m/readme.txt'], ['m/*'], r'm/\*: expected masks \(\.png .*\), found none'),
        ([], ['m/*.png'], r'm/\*\.png: expected masks'),
        (['m/00001.png', 'm/00001.bmp'], ['m'], r'00001\.bmp and 00001\.png'),
        (
            ['00001.png', '00001.bmp'],
            ['00001.png', '00001.bmp'],
            r'expected one mask for frame 1, found .*png and .*bmp',
        ),
        (['m/00001.png', '00001.png'], ['m', '00001.png'], 'expected one mask for frame 1'),
    ],
)
def test_names_of_no_frame_and_of_one_frame_twice(tmp_path, files, said, message):
    touch(tmp_path, 'frames', *files)
    with pytest.raises(DataError, match=message):
        match_masks([given(tmp_path / name) for name in said], NAMES)


def test_frames_that_are_said_and_cannot_be(tmp_path):
    touch(tmp_path, 'a.png', 'b.png', 'm/00001.png')
    a, b, m = tmp_path / 'a.png', tmp_path / 'b.png', tmp_path / 'm'
    for masks, message in (
        ([given(a, frame=6)], r'a\.png: expected a frame from 0 to 5, found .* frame 6'),
        ([given(a, frame=2), given(b, frame=2)], 'expected one mask for frame 2, found .*joined by commas'),
        ([given(a), given(b, frame=0)], 'expected one mask for frame 0'),
        ([given(m), given(b, frame=1)], 'expected one mask for frame 1'),
        ([given(m, frame=1)], 'm: expected a file for frame 1, found a folder'),
        ([given(a, m)], 'm: expected a file for frame 0, found a folder'),
        ([given(a, b, frame=0, label=255)], r'a\.png: expected labels from 1 to 255, found 255 to 256'),
        ([given(a, frame=0, label=0)], r'a\.png: expected labels from 1 to 255, found 0 to 0'),
    ):
        with pytest.raises(DataError, match=message):
            match_masks(masks, NAMES)


def test_frames_without_names(tmp_path):
    """Frames of a video file or a camera have no names, so that several masks need numbers; a single one does not."""
    touch(tmp_path, 'm/00000.png', 'm/00001.png')
    first, second = tmp_path / 'm/00000.png', tmp_path / 'm/00001.png'
    assert places(match_masks([given(second)], None)) == {0: '00001.png'}
    assert places(match_masks([given(second), given(first, frame=900)], None)) == {0: '00001.png', 900: '00000.png'}
    for masks in ([given(tmp_path / 'm')], [given(first), given(second)], [given(tmp_path / 'm' / '*.png')]):
        with pytest.raises(DataError, match=r'00000\.png: expected the number of its frame, .*FRAME=FILE'):
            match_masks(masks, None)


def test_what_is_no_mask_in_a_folder_is_named(tmp_path, caplog):
    touch(tmp_path / 'm', '00001.png', 'labels.json', 'notes.txt', '.hidden', 'old/00002.png')
    assert list(list_masks(tmp_path / 'm')) == ['00001']
    assert caplog.messages == [
        f'{tmp_path}/m: left out entries other than .png .bmp .webp .tif .tiff .gif .jpg .jpeg: '
        'labels.json, notes.txt, old/'
    ]
    caplog.clear()
    match_masks([given(tmp_path / 'm' / '*')], NAMES)
    assert 'left out, since they are not masks: labels.json, notes.txt, old' in caplog.text


# Frames


def test_frames_of_all_formats(tmp_path, caplog):
    image = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)
    for number, suffix in enumerate(('.png', '.bmp', '.tif', '.TIFF', '.webp', '.jpg', '.jpeg')):
        Image.fromarray(image).save(
            tmp_path / f'{number}{suffix}', **({'lossless': True} if suffix == '.webp' else {})
        )
    frames = list_frames(tmp_path)
    assert [path.stem for path in frames] == list('0123456')
    for path in frames[:5]:
        np.testing.assert_array_equal(read_image(path), image)
        assert image_size(path) == SHAPE
    assert not caplog.records


@pytest.mark.parametrize(
    ('others', 'shown'),
    [
        (['b.heic'], 'b.heic'),
        (['notes.txt', 'clip.mp4', 'sub/1.jpg'], 'clip.mp4, notes.txt, sub/'),
        ([f'{number}.gif' for number in range(7)], '0.gif, 1.gif, 2.gif, 3.gif, 4.gif and 2 more'),
        (['a\nb.txt'], r"'a\nb.txt'"),
    ],
)
def test_what_a_folder_holds_beside_frames_is_named_in_one_line(tmp_path, caplog, others, shown):
    touch(tmp_path, '1.jpg', '2.webp', *others)
    assert [path.name for path in list_frames(tmp_path)] == ['1.jpg', '2.webp']
    [line] = caplog.messages
    assert line.endswith(f': {shown}')


def test_a_folder_of_folders_is_no_reason_for_a_line(tmp_path, caplog):
    touch(tmp_path, 'cat/1.jpg', 'dog/1.jpg', '.DS_Store')
    assert list_frames(tmp_path) == []
    assert not caplog.records


@pytest.mark.parametrize('compression', [None, 'tiff_lzw', 'tiff_adobe_deflate'])
@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
def test_turned_tiffs(tmp_path, orientation, compression):
    image = np.arange(24 * 3, dtype=np.uint8).reshape(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(tmp_path / 'a.tif', exif=exif, **({'compression': compression} if compression else {}))
    expected = np.rot90(image, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    np.testing.assert_array_equal(read_image(tmp_path / 'a.tif'), expected)
    assert image_size(tmp_path / 'a.tif') == expected.shape[:2]


def test_odd_tiffs(tmp_path):
    page = Image.fromarray(np.zeros((4, 6, 3), np.uint8))
    page.save(tmp_path / 'pages.tif', save_all=True, append_images=[page, page])
    with pytest.raises(DataError, match=r'pages\.tif: expected one picture, found 3'):
        read_image(tmp_path / 'pages.tif')
    Image.fromarray(np.zeros((4, 6), np.float32)).save(tmp_path / 'real.tif')
    with pytest.raises(DataError, match=r'real\.tif: expected an image of 8 or 16 bits'):
        read_image(tmp_path / 'real.tif')
    Image.fromarray(np.full((4, 6), 0x1234, np.uint16)).save(tmp_path / 'deep.tif')
    assert (read_image(tmp_path / 'deep.tif') == 0x12).all()


# Folders of videos


@pytest.fixture
def root(tmp_path) -> Path:
    for video in ('bear', 'fox'):
        for number in range(3):
            write(tmp_path / f'JPEGImages/{video}/{number}.png', np.full((*SHAPE, 3), 50 * number, np.uint8))
        write(tmp_path / f'Annotations/{video}/0.png', labels(1, 2))
    return tmp_path


def found_labels(video) -> dict[str, list[int]]:
    return {
        frame.name: np.unique(video.read_mask(frame, SHAPE)).tolist()
        for frame in video.frames
        if frame.mask is not None
    }


def test_masks_of_a_folder_are_judged_as_a_users(root, caplog):
    """The masks of each video are judged together, as those of a user: white and red are not colours of DAVIS."""
    colours = np.array([(0, 0, 0), (255, 255, 255), (255, 0, 0)], np.uint8)
    write(root / 'Annotations/bear/0.png', colours[labels(1)])
    write(root / 'Annotations/bear/2.tif', colours[labels(2, 1)])
    bear, fox = folder(root)
    assert found_labels(bear) == {'0': [0, 1], '2': [0, 1, 2]}
    assert found_labels(fox) == {'0': [0, 1, 2]}
    assert bear.read_mask(bear.frames[1], SHAPE) is None
    np.testing.assert_array_equal(bear.read_mask(bear.frames[2], SHAPE), labels(2, 1))
    assert 'bear: the masks have these colours: #ffffff is object 1, #ff0000 is object 2' in caplog.text


def test_a_folder_of_masks_an_object(root):
    (root / 'Annotations/bear/0.png').unlink()
    write(root / 'Annotations/bear/1/0.png', labels(255))
    write(root / 'Annotations/bear/4/0.png', labels(0, 255))
    write(root / 'Annotations/bear/4/2.png', labels(0, 255))
    bear, _ = folder(root)
    assert found_labels(bear) == {'0': [0, 1, 4], '2': [0, 4]}
    assert [frame.objects for frame in bear.frames] == [(1, 4), None, (4,)]
    np.testing.assert_array_equal(bear.read_mask(bear.frames[0], SHAPE), labels(1, 4))


def test_a_single_video_with_a_folder_of_masks_an_object(root):
    single = root / 'holiday'
    single.mkdir()
    (root / 'JPEGImages/bear').rename(single / 'JPEGImages')
    write(single / 'Annotations/1/1.png', labels(255))
    write(single / 'Annotations/2/1.png', labels(0, 255))
    [video] = folder(single)
    assert video.name == 'holiday'
    assert [frame.wanted for frame in video.frames] == [False, True, True]
    assert found_labels(video) == {'1': [0, 1, 2]}


@pytest.mark.parametrize('name', ['preview.jpg', '0.png', 'notes.txt'])
def test_a_file_beside_the_folders_of_videos_is_named(root, caplog, name):
    (root / 'JPEGImages' / name).touch()
    assert [video.name for video in folder(root)] == ['bear', 'fox']
    assert caplog.messages == [f'{root}/JPEGImages: these files beside the video folders are left out: {name}']


def test_masks_of_no_video_are_named(root, caplog):
    write(root / 'Annotations/cow/0.png', labels(1))
    folder(root)
    assert caplog.messages == [
        f'{root}/Annotations: these are left out, since {root}/JPEGImages has no videos of these names: cow/'
    ]


def test_a_single_video_beside_a_folder(root, caplog):
    """Frames beside a folder are a single video if the masks lie directly in Annotations, too."""
    for number in range(3):
        (root / f'JPEGImages/bear/{number}.png').rename(root / f'JPEGImages/{number}.png')
    (root / 'Annotations/bear/0.png').rename(root / 'Annotations/0.png')
    (root / 'Annotations/bear').rmdir()
    (root / 'JPEGImages/bear').rename(root / 'JPEGImages/raw')
    (root / 'Annotations/fox').rename(root / 'fox')
    (root / 'JPEGImages/fox').rename(root / 'frames')
    [video] = folder(root)
    assert (video.name, len(video.frames)) == (root.name, 3)
    assert 'raw/' in caplog.text


def test_what_is_wrong_with_masks_is_said_of_all_videos_before_any_work(root):
    write(root / 'Annotations/bear/0.png', np.zeros(SHAPE, np.uint8))
    with pytest.raises(DataError, match=r'^bear: expected a mask that shows an object') as error:
        folder(root)
    assert 'fox' not in str(error.value)
    (root / 'Annotations/fox/0.png').unlink()
    with pytest.raises(DataError, match=r'2 of 2 videos cannot be used:\n  bear: .*\n  .*fox: no masks of the frames'):
        folder(root)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda root: write(root / 'Annotations/bear/0.png', labels(1).T.copy()),
            r'0\.png: expected a mask of its im',
        ),
        (
            lambda root: write(root / 'Annotations/bear/7.png', labels(1)),
            'masks without a frame of the same name.*: 7',
        ),
        (lambda root: write(root / 'Annotations/bear/0.tif', labels(1)), r'0\.png and 0\.tif'),
        (lambda root: write(root / 'Annotations/bear/0.png', np.full((*SHAPE, 3), (9, 8, 7), np.uint8)), 'background'),
    ],
)
def test_masks_that_cannot_be_used(root, change, message):
    change(root)
    with pytest.raises(DataError, match=message):
        folder(root)


@pytest.mark.parametrize('first_only', [False, True])
def test_the_first_masks_of_objects_alone(root, first_only):
    """With ``first_only``, the network gets only the first mask of each object."""
    (root / 'Annotations/bear/0.png').unlink()
    write(root / 'Annotations/bear/1/0.png', labels(255))
    write(root / 'Annotations/bear/4/1.png', labels(0, 255))
    write(root / 'Annotations/bear/4/2.png', labels(0, 255))
    write(root / 'Annotations/fox/1.png', labels(1, 2, 7))
    write(root / 'Annotations/fox/2.png', labels(7, 1))
    bear, fox = folder(root, first_only=first_only)
    if first_only:
        assert bear.given == {'0': [1], '1': [4]}
        assert fox.given == {'0': [1, 2], '1': [7]}
        assert fox.read_mask(fox.frames[2], SHAPE) is None
        np.testing.assert_array_equal(fox.read_mask(fox.frames[1], SHAPE), labels(1, 2, 7))
    else:
        assert bear.given == {'0': [1], '1': [4], '2': [4]}
        assert fox.given == {'0': [1, 2], '1': [1, 2, 7], '2': [1, 7]}


def test_a_frame_that_cannot_be_read_is_left_to_the_run(root):
    (root / 'JPEGImages/bear/0.png').write_bytes(b'no image')
    assert len(folder(root)) == 2


def test_palettes_of_the_benchmarks_are_read_as_ever(root):
    image = Image.fromarray(labels(1, 2))
    image.putpalette(PALETTE.tobytes())
    image.save(root / 'Annotations/bear/0.png')
    bear, _ = folder(root)
    np.testing.assert_array_equal(bear.read_mask(bear.frames[0], SHAPE), labels(1, 2))


@pytest.mark.skipif(not CASES.is_dir(), reason='needs /work/shared')
def test_reported_cases_in_shared():
    masks = CASES / 'mask-named-like-frame/masks'
    both = {0: '00000.png', 4: '00004.png'}
    assert places(match_masks([given(masks / '00004.png')], NAMES)) == {4: '00004.png'}
    assert places(match_masks([given(masks)], NAMES)) == both
    assert places(match_masks([given(path) for path in masks.iterdir()], NAMES)) == both
    frames = CASES / 'frame-formats'
    for name, count in (('bmp', 2), ('webp', 2), ('tif', 2), ('mixed', 5)):
        assert [read_image(path).ndim for path in list_frames(frames / name)] == count * [3]
    [mine] = folder(CASES / 'folder-layouts/mine')
    assert mine.frames[0].objects == (1, 2)
    [stray] = folder(CASES / 'folder-layouts/stray')
    assert len(stray.frames) == 3
    with pytest.raises(DataError, match='fox: no masks of the frames in'):
        folder(CASES / 'folder-layouts/nomask')
