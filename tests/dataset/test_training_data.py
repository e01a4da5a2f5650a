"""Training datasets on small trees in the published layouts: which files they find, what a sample is, and errors."""

import itertools
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dataset import augment, static, video
from dataset.augment import FILL, IMAGENET_MEAN, IMAGENET_STD, draw_video, init_worker
from dataset.io import DataError, read_image
from dataset.sampling import Address, AddressSampler, sample_frames
from dataset.static import StaticDataset, find_pairs, read_coverage, read_pair
from dataset.synthetic import SyntheticDataset
from dataset.training import open_training_set
from dataset.video import (
    VideoDataset,
    annotation_stride,
    find_bl30k,
    find_davis,
    find_main,
    find_own,
    find_videos,
    find_youtube,
    read_split,
)
from scripts import show_samples
from tests.trees import write, write_pair, write_video

SIZE = 64


@pytest.fixture(scope='module')
def static_root(tmp_path_factory):
    root = tmp_path_factory.mktemp('static')
    for folder in ('fss/cat', 'fss/dog', 'DUTS-TR', 'BIG_small', 'mine'):
        for name in '123':
            write_pair(root / folder, name)
    return root


@pytest.fixture(scope='module')
def davis_root(tmp_path_factory):
    base = tmp_path_factory.mktemp('DAVIS') / '2017' / 'trainval'
    for name in ('bear', 'boat', 'blackswan'):  # the last one belongs to the validation set
        write_video(base / 'JPEGImages' / '480p', base / 'Annotations' / '480p', name)
    return base.parents[1]


@pytest.fixture(scope='module')
def yv_root(tmp_path_factory):
    base = tmp_path_factory.mktemp('YouTube') / 'train_480p'
    for name in read_split('youtube_vos_train')[:3]:
        write_video(base / 'JPEGImages', base / 'Annotations', name, step=5)
    return base.parent


def gray_levels(rgb):
    """A sample's rgb before normalisation, 0 .. 255."""
    return 255 * (rgb.numpy() * IMAGENET_STD[:, None, None] + IMAGENET_MEAN[:, None, None])


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key]


# Static images


def test_pairs_of_all_folders_with_their_repetitions(static_root, caplog):
    caplog.set_level('INFO')
    pairs = find_pairs(static_root)
    found = [Path(pair.image).relative_to(static_root).parent.as_posix() for pair in pairs]
    assert {name: found.count(name) for name in found} == {
        'fss/cat': 3,
        'fss/dog': 3,
        'DUTS-TR': 3,
        'BIG_small': 15,
        'mine': 3,
    }
    assert all(Path(pair.mask) == Path(pair.image).with_suffix('.png') for pair in pairs)
    assert 'without DUTS-TE, ecssd, HRSOD_small' in caplog.text
    assert len(find_pairs(static_root / 'mine')) == 3


def test_static_sample(static_root):
    dataset = StaticDataset(find_pairs(static_root), size=SIZE)
    for index in range(len(dataset)):
        sample = dataset[Address(0, 0, index)]
        assert sample['rgb'].shape == (3, 3, SIZE, SIZE)
        assert sample['rgb'].dtype == torch.float32
        assert sample['masks'].shape == (3, 1, SIZE, SIZE)
        assert sample['target'].dtype == torch.int64
        assert torch.equal(sample['target'], sample['masks'][:, 0].long())
        assert sample['target'].unique().tolist() == [0, 1]
        assert sample['selector'].tolist() == [1]
        levels = gray_levels(sample['rgb'])
        assert np.abs(levels - levels.round()).max() < 1e-3
        assert levels.min() > -0.01
        assert levels.max() < 255.01


@pytest.mark.parametrize('kind', ['rgb', 'zero-one', 'palette', 'soft', 'transparent'])
def test_masks_of_all_kinds(tmp_path, kind):
    inside = np.zeros((40, 50), np.uint8)
    inside[10:30, 10:30] = 1
    expected = 255 * inside
    if kind == 'rgb':
        path = write(tmp_path / 'mask.png', np.stack([expected] * 3, axis=-1))
    elif kind == 'transparent':  # the colour of what is not seen is often that of the object
        path = write(tmp_path / 'mask.png', np.dstack([np.full((40, 50, 3), 255, np.uint8), expected]))
    elif kind == 'soft':
        expected[10] = 90
        path = write(tmp_path / 'mask.png', expected)
    else:
        path = write(tmp_path / 'mask.png', inside, palette=kind == 'palette')
    np.testing.assert_array_equal(read_coverage(path), expected)


def test_image_without_mask_is_skipped_and_named(tmp_path, caplog):
    write_pair(tmp_path / 'mine', 'good')
    write_pair(tmp_path / 'mine', 'lonely').unlink()
    assert [Path(pair.image).stem for pair in find_pairs(tmp_path)] == ['good']
    assert 'skipped 1 image(s) without a mask' in caplog.text
    assert 'lonely.jpg' in caplog.text


def test_truncated_image_is_replaced_and_named(tmp_path, caplog):
    for name in 'abc':
        write_pair(tmp_path / 'mine', name)
    truncate(tmp_path / 'mine' / 'a.jpg')
    pairs = find_pairs(tmp_path)
    samples = [StaticDataset(pairs, size=SIZE)[Address(0, 0, 0)] for _ in range(2)]
    assert_equal(*samples)
    assert Path(samples[0]['name']).stem in 'bc'
    assert 'a.jpg' in caplog.text


@pytest.mark.parametrize('kind', ['missing', 'empty', 'all broken'])
def test_nothing_usable_is_an_error(tmp_path, kind):
    root = tmp_path / 'static'
    if kind == 'all broken':
        write_pair(root / 'mine', '1')
        truncate(root / 'mine' / '1.jpg')
        with pytest.raises(DataError, match='in a row'):
            StaticDataset(find_pairs(root), size=SIZE)[Address(0, 0, 0)]
        return
    if kind == 'empty':
        (root / 'fss').mkdir(parents=True)
    with pytest.raises(DataError, match='found none'):
        find_pairs(root)


def test_mask_one_pixel_narrower(tmp_path):
    write_pair(tmp_path / 'mine', '1')
    mask = tmp_path / 'mine' / '1.png'
    Image.open(mask).crop((0, 0, 119, 90)).save(mask)
    assert StaticDataset(find_pairs(tmp_path), size=SIZE)[Address(0, 0, 0)]['target'].any()


# Videos


def test_videos_of_the_training_lists_with_their_repetitions(davis_root, yv_root):
    davis, youtube = find_davis(davis_root), find_youtube(yv_root)
    assert [Path(found.images).name for found in davis] == ['bear', 'boat']
    assert len(youtube) == 3
    assert find_main(davis_root, yv_root) == 5 * davis + youtube
    assert [found.stride for found in (davis[0], youtube[0])] == [1, 5]
    assert youtube[0].frames[:3] == ('00000.jpg', '00005.jpg', '00010.jpg')
    assert len(read_split('davis_2017_train')) == 60
    assert len(read_split('youtube_vos_train')) == 3464


def test_what_is_there_is_used(davis_root, yv_root, tmp_path, caplog):
    assert find_main(davis_root, tmp_path) == 5 * find_davis(davis_root)
    assert find_main(tmp_path, yv_root) == find_youtube(yv_root)
    assert 'training goes on without' in caplog.text
    assert 'left out 58 video(s) of the training list that are not there: ' in caplog.text
    with pytest.raises(DataError, match='found none to train on'):
        find_main(tmp_path, tmp_path)
    with pytest.raises(DataError, match='no video to train on'):
        find_bl30k(tmp_path)


def test_only_frames_with_image_and_annotation_count(tmp_path, caplog):
    images, annotations = tmp_path / 'JPEGImages', tmp_path / 'Annotations'
    write_video(images, annotations, 'long', frames=6)
    write_video(images, annotations, 'short', frames=4)
    (annotations / 'long' / '00001.png').unlink()
    (images / 'long' / '00004.jpg').rename(images / 'long' / '00004.jpeg')
    (images / 'short' / '00001.jpg').unlink()
    (annotations / 'short' / '00002.png').unlink()
    (found,) = find_videos(images, annotations)
    assert found.frames == ('00000.jpg', '00002.jpg', '00003.jpg', '00004.jpeg', '00005.jpg')
    assert 'left out 1 video(s) with fewer than 3 frames that have an annotation: short (2 of 3)' in caplog.text
    assert 'left out 1 annotation(s) without a frame of the same name: ' not in caplog.text


def test_hidden_folders_are_no_data(tmp_path):
    for folder in ('mine', '.trash', 'mine/.ipynb_checkpoints', '__MACOSX'):
        write_pair(tmp_path / folder, 'a')
    assert [Path(pair.image).parent.name for pair in find_pairs(tmp_path)] == ['mine']


def test_frames_are_in_the_order_of_their_numbers_and_void_is_background(tmp_path):
    images, annotations = tmp_path / 'JPEGImages', tmp_path / 'Annotations'
    write_video(images, annotations, 'a', frames=4, labels=(1, 255))
    write_video(images, annotations, 'b', frames=4, labels=(255,))
    names = ('1_99', '2_1', '1_100', '1_98')
    for folder, suffix in ((images, '.jpg'), (annotations, '.png')):
        for number, name in enumerate(names):
            (folder / 'a' / f'{number:05d}{suffix}').rename(folder / 'a' / f'{name}{suffix}')
    (annotations / 'a' / '2_1.png').rename(annotations / 'a' / '2_1.PNG')
    a, b = find_videos(images, annotations)
    assert a.frames == ('1_98.jpg', '1_99.jpg', '1_100.jpg', '2_1.jpg')
    dataset = VideoDataset([a, b], size=SIZE, crop_scale=(1, 1))
    for index in range(2):
        sample = dataset[Address(0, 0, index)]
        assert sample['selector'].tolist() == [1, 0]  # in the second one, 255 is the only object
        assert sample['masks'][0, 0].any()
    (image, coverage), *_ = a.film(np.random.default_rng(0), frames=3, max_skip=1)
    assert 20 <= np.median(image[coverage > 0]) <= 25  # object 1 is of level 20


def test_folders_that_the_training_list_does_not_name_are_left_out_with_a_line(davis_root, tmp_path, caplog):
    base = tmp_path / 'train_480p'
    for name in (*read_split('youtube_vos_train')[:3], 'bear', 'cat', 'mine', 'zoo'):
        write_video(base / 'JPEGImages', base / 'Annotations', name, step=5)
    assert len(find_youtube(tmp_path)) == 3
    assert (
        f'{base / "JPEGImages"}: left out 4 video(s) that are not in the training list: bear, cat, mine, ...; '
        f'where {base} is a folder of your own, videos of any name are taken'
    ) in caplog.messages
    find_davis(davis_root)
    assert 'left out 1 video(s) that are not in the training list: blackswan; validation' in caplog.messages[-1]


# Videos of one's own


@pytest.fixture
def own_root(tmp_path):
    """Two videos with the images of all frames: one has a mask for each frame, the other for every fifth."""
    root = tmp_path / 'mine'
    images, annotations = root / 'JPEGImages', root / 'Annotations'
    write_video(images, annotations, 'my cat')
    write_video(images, annotations, 'dog_2', frames=21)
    for path in (annotations / 'dog_2').iterdir():
        if int(path.stem) % 5:
            path.unlink()
    return root


def write_list(path, *names):
    path.write_text('\n'.join(names) + '\n')
    return path


def test_videos_of_any_name_train_alone(own_root, tmp_path, caplog):
    """There is no warning that DAVIS and YouTubeVOS are missing."""
    caplog.set_level('INFO')
    videos = find_main(tmp_path / 'DAVIS', tmp_path / 'YouTube', video_roots=[own_root])
    assert {video.name: (video.stride, len(video.frames)) for video in videos} == {'dog_2': (5, 5), 'my cat': (1, 8)}
    assert {record.levelname for record in caplog.records} == {'INFO'}
    images = own_root / 'JPEGImages'
    assert caplog.messages == [
        f'{images}: 2 video(s)',
        f'{images}: annotated every 5 frames, by the numbers in the names: dog_2',
        f'{images}: annotated every frame: my cat',
        'real clips are drawn from videos of your own (100%); not there: '
        f'DAVIS ({tmp_path / "DAVIS/2017/trainval"}), YouTubeVOS ({tmp_path / "YouTube/train_480p"})',
    ]
    sample = VideoDataset(videos, size=SIZE)[Address(0, 0, 0)]
    assert sample['selector'].tolist() == [1, 1]


def test_videos_of_any_name_beside_the_others(own_root, davis_root, yv_root, caplog):
    caplog.set_level('INFO')
    davis, youtube, own = find_davis(davis_root), find_youtube(yv_root), find_own([own_root])
    assert find_main(davis_root, yv_root, video_roots=[own_root], video_repeat=3) == 5 * davis + youtube + 3 * own
    assert (
        caplog.messages[-1]
        == 'real clips are drawn from DAVIS (52.6%), YouTubeVOS (15.8%), videos of your own (31.6%)'
    )
    assert find_main('none', yv_root, video_roots=[own_root]) == youtube + own
    without_some = find_main(davis_root, 'none', video_roots=[own_root], hold_aside=['my cat', 'boat'])
    assert {video.name for video in without_some} == {'bear', 'dog_2'}
    with pytest.raises(
        DataError, match=r'found none named bat, cow, hen, \.\.\. among those that can be used in .*mine'
    ):
        find_main('none', 'none', video_roots=[own_root], hold_aside=['my cat', 'pig', 'hen', 'cow', 'bat'])
    with pytest.raises(DataError, match='found none to train on but those held aside'):
        find_main('none', 'none', video_roots=[own_root], hold_aside=['my cat', 'dog_2'])


def test_a_folder_is_not_read_twice(yv_root):
    """A folder of YouTubeVOS that is also given as one's own videos counts once."""
    assert len(find_main('none', yv_root, video_roots=[yv_root / 'train_480p'])) == 3


@pytest.mark.parametrize(
    ('names', 'stride'),
    [
        ('00000 00001 00002', 1),
        ('00000 00005 00010', 5),
        ('00003 00005 00007', 2),
        ('8 9 10 11', 1),
        ('00000 00005 00040 00045', 5),
        ('take2_000_480p take2_010_480p take2_020_480p', 10),
        ('00000 00003 00007', None),
        ('a b c', None),
        ('a_1_1 a_1_2 a_2_1', None),
    ],
)
def test_stride_from_the_names_of_annotated_frames(names, stride):
    assert annotation_stride([f'{name}.jpg' for name in names.split()]) == stride


def test_a_list_takes_some_videos(own_root, tmp_path):
    write_video(tmp_path / 'other/JPEGImages', tmp_path / 'other/Annotations', 'horse')
    roots, names = [own_root, tmp_path / 'other'], tmp_path / 'names.txt'
    write_list(names, 'horse', '', 'my cat ', 'horse')
    assert [video.name for video in find_own(roots, video_list=names)] == ['my cat', 'horse']
    names.write_bytes('\ufeffmy cat\r\n'.encode())
    assert [video.name for video in find_own(roots, video_list=names)] == ['my cat']

    write_list(names, 'my cat', 'Horse', 'dog', 'cow', 'hen')
    images = f'{own_root}/JPEGImages or {tmp_path}/other/JPEGImages'
    message = f'{names}: expected names of folders in {images}, found no folder for 4 of 5: Horse, dog, cow, ...'
    with pytest.raises(DataError, match=f'^{re.escape(message)}$'):
        find_own(roots, video_list=names)
    names.write_text('\n')
    with pytest.raises(DataError, match='expected names of videos, one per line, found none'):
        find_own(roots, video_list=names)
    with pytest.raises(FileNotFoundError, match=r'nowhere\.txt'):
        find_own(roots, video_list=tmp_path / 'nowhere.txt')


def test_a_listed_video_that_cannot_be_used_is_an_error(own_root, tmp_path, caplog):
    shutil.rmtree(own_root / 'Annotations' / 'dog_2')
    with pytest.raises(DataError, match=r'names.txt: expected videos .* but 1 in .* cannot be used.*: dog_2'):
        find_own([own_root], video_list=write_list(tmp_path / 'names.txt', 'my cat', 'dog_2'))
    assert 'without annotations: dog_2' in caplog.text


def test_what_is_left_out_of_a_folder_is_a_line_a_cause(own_root, caplog):
    images, annotations = own_root / 'JPEGImages', own_root / 'Annotations'
    for name in ('bat', 'cow', 'hen', 'pig'):
        write_video(images, annotations, name, frames=3)
        shutil.rmtree(annotations / name)
    write_video(images, annotations, 'two', frames=2)
    shutil.rmtree(images / 'two')
    write_video(images, annotations, 'short', frames=6)
    for number in range(2, 6):
        (annotations / 'short' / f'{number:05d}.png').unlink()
    (images / 'my cat' / '00007.jpg').unlink()
    shutil.copy(annotations / 'my cat' / '00003.png', images / 'my cat' / '00003.png')
    shutil.copy(images / 'my cat' / '00000.jpg', images / '00000.jpg')
    assert [video.name for video in find_own([own_root])] == ['dog_2', 'my cat']
    assert caplog.messages == [
        f'{images}: left out {line}'
        for line in (
            '1 video(s) without frames (.jpg .jpeg .png .bmp .webp .tif .tiff): two',
            f'4 video(s) without annotations: bat, cow, hen, ...; expected {annotations}/<video>/<frame>.png',
            '1 video(s) with fewer than 3 frames that have an annotation: short (2 of 6); '
            'expected 00000.png for 00000.jpg',
            '1 frame(s) with the name of another one (.jpg, .png): my cat/00003.jpg; '
            f'{annotations} is the folder of annotations',
            '1 annotation(s) without a frame of the same name: my cat/00007.png',
            f'1 frame(s) that are in no folder of a video: 00000.jpg; expected {images}/<video>/<frame>',
        )
    ]


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (shutil.rmtree, r'mine: expected the folders .*found no JPEGImages and no Annotations'),
        (lambda root: shutil.rmtree(root / 'Annotations'), r'found no Annotations'),
        (lambda root: shutil.rmtree(root / 'JPEGImages' / 'my cat'), 'expected a video with three frames or more'),
    ],
)
def test_a_folder_with_nothing_to_train_on_is_an_error(own_root, davis_root, spoil, message):
    """It is one even if there is other data to train on."""
    shutil.rmtree(own_root / 'Annotations' / 'dog_2')
    spoil(own_root)
    with pytest.raises(DataError, match=message):
        find_main(davis_root, 'none', video_roots=[own_root])


# Samples of videos


def test_video_sample(davis_root):
    dataset = VideoDataset(find_davis(davis_root), size=SIZE)
    levels = 20 * np.array([1, 4, 7])
    pairs = set()
    for epoch in range(40):
        sample = dataset[Address(0, epoch, 0)]
        masks, target, selector = sample['masks'], sample['target'], sample['selector']
        assert sample['rgb'].shape == (3, 3, SIZE, SIZE)
        assert masks.shape == (3, 2, SIZE, SIZE)
        assert masks.dtype == torch.uint8
        assert target.dtype == torch.int64
        assert torch.equal(target, masks[:, 0].long() + 2 * masks[:, 1].long())
        assert selector[0] == 1
        assert masks[0].flatten(1).any(dim=1).tolist() == selector.bool().tolist()
        assert masks[:, 1].any().item() == bool(selector[1])
        # Image and mask belong together: the gray level under a mask is, except for jitter, that of its object.
        red = gray_levels(sample['rgb'])[:, 0]
        chosen = []
        for k in range(int(selector.sum())):
            level = np.median(red[masks[:, k].numpy() > 0])
            chosen.append(int(np.abs(np.log(levels / level)).argmin()))
        assert len(set(chosen)) == len(chosen)
        pairs.add(tuple(chosen))
    assert set(itertools.permutations(range(3), 2)) <= pairs


def test_half_of_the_clips_run_backwards_and_skip_counts_original_frames(davis_root, yv_root, monkeypatch):
    asked = []

    def spy(n, max_skip, rng, **options):
        asked.append(max_skip)
        return sample_frames(n, max_skip, rng, **options)

    monkeypatch.setattr(video, 'sample_frames', spy)
    for videos, expected in ((find_davis(davis_root), 3), (find_youtube(yv_root), 1)):
        dataset = VideoDataset(videos, size=16)
        asked.clear()
        names = [dataset[Address(0, epoch, 0, 3)]['name'].split()[1:] for epoch in range(60)]
        assert set(asked) == {expected}
        forward = [name == sorted(name) for name in names]
        backward = [name == sorted(name, reverse=True) for name in names]
        assert all(f != b for f, b in zip(forward, backward, strict=True))
        assert 15 < sum(forward) < 45
    asked.clear()
    dataset[Address(0, 0, 0, 25)]
    assert set(asked) == {5}


def test_clip_without_objects_is_drawn_again_then_kept(tmp_path, monkeypatch):
    images, annotations = tmp_path / 'JPEGImages', tmp_path / 'Annotations'
    write_video(images, annotations, 'empty', labels=())
    draws = []

    def spy(*args, **options):
        draws.append(args)
        return []

    dataset = VideoDataset(find_videos(images, annotations), size=SIZE)
    monkeypatch.setattr(video, 'choose_objects', spy)
    sample = dataset[Address(0, 0, 0)]
    assert len(draws) == 6
    assert sample['selector'].tolist() == [1, 0]
    assert not sample['target'].any()
    assert not sample['masks'].any()


def test_bl30k_discards_tiny_objects(tmp_path):
    write_video(tmp_path / 'JPEGImages', tmp_path / 'Annotations', '0', labels=(1, 2))
    for path in sorted((tmp_path / 'Annotations' / '0').iterdir()):
        mask = np.array(Image.open(path))
        mask[mask == 2] = 0
        mask[5:9, 5:9] = 2
        write(path, mask, palette=True)
    dataset = open_training_set('bl30k', size=SIZE, static_root='', bl_root=tmp_path, yv_root='', davis_root='')
    assert dataset.crop_scale == (0.25, 1.0)
    samples = [dataset[Address(0, epoch, 0)] for epoch in range(20)]
    assert all(sample['selector'].tolist() == [1, 0] for sample in samples)
    assert sum(sample['masks'].any().item() for sample in samples) > 15


def test_truncated_frame_is_replaced_and_named(davis_root, tmp_path, caplog):
    shutil.copytree(davis_root, tmp_path / 'DAVIS')
    for path in (tmp_path / 'DAVIS').rglob('JPEGImages/480p/bear/*.jpg'):
        truncate(path)
    dataset = VideoDataset(find_davis(tmp_path / 'DAVIS'), size=SIZE)
    assert 'boat' in dataset[Address(0, 0, 0)]['name']
    assert 'bear' in caplog.text


# Determinism


@pytest.mark.parametrize('kind', ['static', 'video'])
def test_a_sample_depends_on_its_address_alone(static_root, davis_root, yv_root, kind):
    """It does not depend on workers, order, the number of processes or what was loaded before."""
    if kind == 'static':
        dataset = StaticDataset(find_pairs(static_root), size=SIZE)
    else:
        dataset = VideoDataset(find_main(davis_root, yv_root), size=SIZE)
    sampler = AddressSampler(len(dataset), batch_size=2, iterations=6, seed=5, schedule=((0, 5), (50, 2)))
    addresses = list(sampler)
    backwards = [[dataset[address] for address in reversed(batch)][::-1] for batch in reversed(addresses)][::-1]
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=2, worker_init_fn=init_worker)
    for batch, samples in zip(loader, backwards, strict=True):
        for i, sample in enumerate(samples):
            assert_equal({key: value[i] for key, value in batch.items()}, sample)
    other = dataset[addresses[0][0]._replace(seed=6)]
    assert not torch.equal(other['rgb'], backwards[0][0]['rgb'])


def test_contact_sheet(static_root, tmp_path):
    output = tmp_path / 'sheet.png'
    flags = ['--stage', '0', '--static_root', static_root, '--crop_size', SIZE, '--count', 2, '--output', output]
    assert show_samples.main(list(map(str, flags))) == 0
    assert read_image(output).shape == (2 * SIZE, 3 * SIZE, 3)


def test_fill_is_zero_after_normalisation():
    assert np.abs(np.array(FILL) / 255 - IMAGENET_MEAN).max() < 0.5 / 255


# Large images, and decoding once


@pytest.fixture
def large_root(tmp_path):
    write_pair(tmp_path / 'static' / 'mine', '1', size=(600, 801))
    return tmp_path / 'static'


def test_large_images_are_decoded_at_a_reduced_size(large_root, monkeypatch):
    """Samples look as if decoded at full size: they differ by a quarter, at most, of what a shift by a pixel does."""
    [pair] = find_pairs(large_root)
    reductions = []
    monkeypatch.setattr(
        static,
        'read_pair',
        lambda pair, *, reduction: reductions.append(reduction) or read_pair(pair, reduction=reduction),
    )
    dataset = StaticDataset([pair], size=SIZE)
    found = [dataset[Address(0, epoch, 0)] for epoch in range(4)]
    assert set(reductions) <= {2, 4, 8}
    assert reductions
    monkeypatch.setattr(augment, 'REDUCTIONS', ())
    for epoch, sample in enumerate(found):
        expected = dataset[Address(0, epoch, 0)]
        assert torch.equal(sample['masks'], expected['masks'])
        difference = (sample['rgb'] - expected['rgb']).abs().mean()
        moved = (expected['rgb'][..., 1:] - expected['rgb'][..., :-1]).abs().mean()
        assert difference < 0.25 * moved
    assert reductions[-1] == 1


def test_no_frame_enlarges_what_was_reduced():
    rng = np.random.default_rng(0)
    for height, width in ((90, 120), (480, 854), (1080, 1920), (4000, 3000)):
        warps = draw_video(rng, height, width, size=384, crop_scale=(0.36, 1.0)).warps
        step = min(warp.steps().min() for warp in warps)
        assert {warp.reduction for warp in warps} == {max(factor for factor in (1, 2, 4, 8) if factor <= max(step, 1))}


def test_frames_of_a_video_are_read_once(yv_root, monkeypatch):
    """This holds even if a clip is drawn again because it shows no object."""
    [first, *_] = find_main(yv_root / 'none', yv_root)
    read = []
    monkeypatch.setattr(video, 'choose_objects', lambda *args, **options: [])
    monkeypatch.setattr(video, 'read_image', lambda path, **options: read.append(path) or read_image(path, **options))
    VideoDataset([first], size=SIZE)[Address(0, 0, 0, 5)]
    assert len(read) == 3


def test_stills_that_are_kept_are_the_same(static_root, tmp_path, monkeypatch):
    folder = tmp_path / 'decoded'
    for dataset in (StaticDataset, SyntheticDataset):
        kept = dataset(find_pairs(static_root, cache_dir=folder), size=SIZE)
        plain = dataset(find_pairs(static_root), size=SIZE)
        for _ in range(2):
            assert_equal(kept[Address(0, 0, 1)], plain[Address(0, 0, 1)])

    def fail(path, **options):
        raise AssertionError(f'{path} was decoded again')

    monkeypatch.setattr(static, 'read_image', fail)
    monkeypatch.setattr(static, 'read_coverage', fail)
    kept[Address(0, 0, 1)]


def test_a_still_that_changed_or_is_damaged_is_decoded_again(tmp_path):
    write_pair(tmp_path / 'static' / 'mine', '1')
    folder = tmp_path / 'decoded'
    [pair] = find_pairs(tmp_path / 'static', cache_dir=folder)
    image, coverage = read_pair(pair)
    for path in folder.rglob('*.npy'):
        truncate(path)
    for _ in range(2):
        again, coverage_again = read_pair(pair)
        assert np.array_equal(again, image)
        assert np.array_equal(coverage_again, coverage)
    write(Path(pair.image), 255 - image, quality=95)
    assert np.abs(read_pair(pair)[0].astype(int) - image).mean() > 20


def test_a_cache_that_cannot_be_written_is_named_once(tmp_path, caplog):
    for name in 'ab':
        write_pair(tmp_path / 'static' / 'mine', name)
    (tmp_path / 'file').write_text('no folder')
    for pair in find_pairs(tmp_path / 'static', cache_dir=tmp_path / 'file'):
        assert read_pair(pair)[0].shape == (90, 120, 3)
    [message] = [record.message for record in caplog.records if 'kept decoded' in record.message]
    assert str(tmp_path / 'file') in message


def test_a_full_disk_ends_the_cache_and_not_the_training(tmp_path, caplog, monkeypatch):
    def fail(file, array):
        raise OSError(f'{array.size} requested and 1000 written')  # numpy's words, without an errno

    write_pair(tmp_path / 'static' / 'mine', '1')
    [pair] = find_pairs(tmp_path / 'static', cache_dir=tmp_path / 'decoded')
    monkeypatch.setattr(np, 'save', fail)
    assert read_pair(pair)[0].shape == (90, 120, 3)
    [message] = [record.message for record in caplog.records if 'kept decoded' in record.message]
    assert 'only a part of a file' in message
