"""Clips composed of cut-outs: what moves, what covers what, and where they enter training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.io import DataError
from dataset.sampling import Address
from dataset.static import find_pairs
from dataset.synthetic import DIFFICULTIES, CutOuts, Layer, Mixture, SyntheticDataset, Thing
from dataset.training import open_training_set
from dataset.video import VideoDataset, find_davis
from tests.trees import write_pair

SIZE = 96


@pytest.fixture(scope='module')
def pairs(roots):
    return find_pairs(roots['static_root'])


def samples(dataset, count):
    return [dataset[Address(0, epoch, epoch % len(dataset))] for epoch in range(count)]


def test_a_clip_has_two_moving_objects(pairs):
    clips = samples(SyntheticDataset(pairs, size=SIZE), 30)
    two = [clip for clip in clips if clip['selector'].tolist() == [1, 1]]
    assert len(two) > 15
    for clip in clips:
        assert clip['rgb'].shape == (3, 3, SIZE, SIZE)
        assert clip['masks'].shape == (3, 2, SIZE, SIZE)
        labels = clip['masks'][:, 0] + 2 * clip['masks'][:, 1]
        assert torch.equal(clip['target'], labels.long())  # which also says that the objects do not overlap
    moved = [(clip['target'][0] != clip['target'][2]).float().mean() for clip in two]
    assert min(moved) > 0.01


def test_cut_outs_move_smoothly(pairs):
    """The middle frame lies between the others, for positions as for sizes: no jumps to and fro."""
    rng, steps, accelerations = np.random.default_rng(0), [], []
    cut_outs = CutOuts(pairs)
    while len(steps) < 60:
        for layer in cut_outs.draw(rng, SIZE):
            if layer.coverage[:, [0, -1]].any() or layer.coverage[:, :, [0, -1]].any():
                continue  # cut by the border
            places = [np.argwhere(inside > 127) for inside in layer.coverage]
            if all(len(place) for place in places):
                first, middle, last = (place.mean(axis=0) for place in places)
                steps.append(np.linalg.norm(last - first))
                accelerations.append(np.linalg.norm(first + last - 2 * middle))
    assert np.median(steps) > 0.1 * SIZE
    assert np.median(accelerations) < np.median(steps)


def test_the_last_layer_lies_in_front():
    def layer(level, columns):
        coverage = np.zeros((1, 8, 8), np.uint8)
        coverage[:, :, columns] = 255
        return Layer(None, coverage, [np.full((8, 8, 3), level, np.uint8)])

    frames, labels = [np.zeros((8, 8, 3), np.uint8)], np.zeros((1, 8, 8), np.uint8)
    labels[:, :, 7] = 1
    for each in (layer(100, slice(0, 5)), layer(200, slice(3, 6))):
        each.paste(frames)
        each.paste_label(labels)
    assert frames[0][0, :, 0].tolist() == [100, 100, 100, 200, 200, 200, 0, 0]
    assert labels[0, 0].tolist() == [2, 2, 2, 3, 3, 3, 0, 1]


def test_pasting_blends_along_the_edge():
    frames = [np.full((1, 1, 3), 10, np.uint8)]
    Layer(None, np.full((1, 1, 1), 51, np.uint8), [np.full((1, 1, 3), 210, np.uint8)]).paste(frames)
    assert frames[0].ravel().tolist() == [50, 50, 50]


def test_without_a_free_label_a_cut_out_only_distracts():
    labels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    before = labels.copy()
    Layer(None, np.full((1, 16, 16), 255, np.uint8), [np.zeros((16, 16, 3), np.uint8)]).paste_label(labels)
    assert np.array_equal(labels, before)


def test_video_clips_get_a_second_object(roots, pairs):
    """Half of the clips get one. Apart from the random number that decides it, the others are as without cut-outs."""
    dataset = VideoDataset(find_davis(roots['davis_root']), size=SIZE, cut_outs=CutOuts(pairs))
    plain = VideoDataset(find_davis(roots['davis_root']), size=SIZE)
    different = [
        not torch.equal(a['rgb'], b['rgb']) for a, b in zip(samples(dataset, 40), samples(plain, 40), strict=True)
    ]
    assert 10 < sum(different) < 30


@pytest.mark.parametrize(('name', 'kind'), [('bl30k', SyntheticDataset), ('main', Mixture)])
def test_the_training_sets_with_synthetic_clips(roots, name, kind):
    dataset = open_training_set(name, size=SIZE, **roots | {'bl_root': 'nowhere'}, synthetic_root=roots['static_root'])
    assert isinstance(dataset, kind)
    names = [clip['name'] for clip in samples(dataset, 24)]
    stills = sum('DAVIS' not in name and 'YouTube' not in name for name in names)
    assert stills == 24 if name == 'bl30k' else 4 < stills < 20


def test_held_aside_videos_are_not_trained_on(roots, tmp_path):
    places = {**roots, 'yv_root': tmp_path}
    with pytest.raises(DataError, match='expected videos in'):
        open_training_set('main', size=SIZE, **places, hold_aside=['bear'])
    with pytest.raises(DataError, match='none named cat'):
        open_training_set('main', size=SIZE, **places, hold_aside=['cat'])


def test_what_is_too_small_to_cut_out_is_left_out(tmp_path):
    mask_file = write_pair(tmp_path, '1')
    mask = np.zeros_like(np.array(Image.open(mask_file)))
    mask[5:9, 5:9] = 255
    Image.fromarray(mask).save(mask_file)
    assert CutOuts(find_pairs(tmp_path)).draw(np.random.default_rng(0), SIZE) == []
    Image.fromarray(0 * mask).save(mask_file)
    assert CutOuts(find_pairs(tmp_path)).draw(np.random.default_rng(0), SIZE) == []
    samples(SyntheticDataset(find_pairs(tmp_path), size=SIZE), 3)


def test_a_broken_pair_is_named_and_replaced(tmp_path, caplog):
    good = write_pair(tmp_path / 'good', '1')
    bad = write_pair(tmp_path / 'bad', '1')
    bad.write_bytes(bad.read_bytes()[:60])
    dataset = SyntheticDataset(find_pairs(tmp_path), size=SIZE)
    found = 0
    for epoch in range(8):
        try:
            found += dataset[Address(0, epoch, 0)]['name'] == str(good.with_suffix('.jpg'))
        except DataError:  # half of the pairs is broken and a clip needs several
            continue
    assert found
    assert str(bad) in caplog.text


HARD, PLAIN = DIFFICULTIES['hard'], DIFFICULTIES['plain']


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Three pairs in each of two folders."""
    root = tmp_path_factory.mktemp('folders')
    for name in ('cats/1', 'cats/2', 'cats/3', 'dogs/1', 'dogs/2', 'dogs/3'):
        write_pair(root / Path(name).parent, Path(name).name)
    return find_pairs(root)


def layers_of(pairs, difficulty, count, **options):
    """The clips of ``count`` draws of at least two cut-outs, each a list of layers."""
    rng, cut_outs = np.random.default_rng(0), CutOuts(pairs, difficulty=difficulty)
    clips = [cut_outs.draw(rng, SIZE, **options) for _ in range(count)]
    return [layers for layers in clips if len(layers) > 1]


def test_cut_outs_look_like_those_before_them(folders):
    """Half of the later cut-outs repeat an earlier one, the others come from the folder of an earlier one."""
    clips = layers_of(folders, replace(PLAIN, look_alike=1.0), 100)
    names = [[str(Path(layer.source.image).parent) for layer in layers] for layers in clips]
    assert len({each[0] for each in names}) == 2
    assert all(len(set(each)) == 1 for each in names)
    same = np.mean([layers[0].source == layers[1].source for layers in clips])
    assert 0.5 < same < 0.85  # 1/2 + 1/2 * 1/3: a draw from the folder may be the same one, too
    assert all(not np.array_equal(layers[0].coverage, layers[1].coverage) for layers in clips)


def test_an_object_of_the_scene_is_what_cut_outs_look_like(folders):
    thing = Thing(folders[0], np.zeros((3, SIZE, SIZE), np.uint8))
    draw = CutOuts(folders, difficulty=replace(HARD, look_alike=1.0)).draw
    layers = [layer for seed in range(20) for layer in draw(np.random.default_rng(seed), SIZE, scene=[thing])]
    assert {Path(layer.source.image).parent for layer in layers} == {Path(folders[0].image).parent}


def test_objects_of_videos_move_as_they_do_there(roots, pairs):
    """A cut-out from a video has another mask in each frame, and may show what the clip shows at another time."""
    videos = find_davis(roots['davis_root'])
    film = videos[0].film(np.random.default_rng(0), frames=3, max_skip=5)
    assert len(film) == 3
    assert all(coverage.shape == image.shape[:2] for image, coverage in film)
    coverages = [coverage for _, coverage in film]
    assert [set(np.unique(each)) for each in coverages] == 3 * [{0, 255}]
    assert not np.array_equal(coverages[0], coverages[2])

    scene = [Thing(videos[0], np.zeros((3, SIZE, SIZE), np.uint8))]
    for difficulty in (replace(PLAIN, moving=1.0), replace(PLAIN, look_alike=1.0)):
        draw = CutOuts(pairs, difficulty=difficulty, videos=videos).draw
        layers = [layer for seed in range(10) for layer in draw(np.random.default_rng(seed), SIZE, scene=scene)]
        assert layers
        assert all(layer.source in videos for layer in layers)
    still = CutOuts(pairs, difficulty=replace(HARD, look_alike=1.0)).draw(np.random.default_rng(0), SIZE, scene=scene)
    assert all(layer.source in pairs for layer in still)


def test_a_crossing_hides_an_object_that_comes_back(pairs):
    """The cut-out covers the object's middle in the middle frame, and leaves it free in the first and last ones."""
    behind = np.zeros((3, SIZE, SIZE), np.uint8)
    behind[:, 30:60, 40:55] = 255
    draw = CutOuts(pairs, difficulty=replace(PLAIN, crossing=1.0)).draw
    drawn = [draw(np.random.default_rng(seed), SIZE, limit=1, scene=[Thing(None, behind)]) for seed in range(80)]
    hidden = np.array(
        [[np.mean(layer.coverage[t][behind[t] > 0] > 127) for t in range(3)] for [layer] in filter(None, drawn)]
    )
    assert hidden[:, 1].mean() > 0.4
    assert hidden[:, [0, 2]].mean() < 0.1


def test_blur_follows_the_path_and_keeps_the_colour(pairs):
    """With blur, the border of a cut-out fades over more pixels."""
    sharp, blurred = (layers_of(pairs, replace(PLAIN, speed=0.4, blur=blur), 60, limit=2) for blur in (0.0, 1.0))

    def share_of_border(clips):
        coverages = [layer.coverage for layers in clips for layer in layers]
        return np.mean([np.mean((each > 0) & (each < 255)) / max(np.mean(each > 0), 1e-6) for each in coverages])

    assert share_of_border(blurred) > 1.3 * share_of_border(sharp)


def test_hard_clips_move_more(pairs):
    """On average, the middle of a cut-out moves further from the first frame to the last one."""

    def way(difficulty):
        coverages = [layer.coverage for layers in layers_of(pairs, difficulty, 150) for layer in layers]
        places = [[np.argwhere(each[t] > 127) for t in (0, -1)] for each in coverages]
        ways = [
            np.linalg.norm(last.mean(axis=0) - first.mean(axis=0)) for first, last in places if len(first) * len(last)
        ]
        return np.median(ways)

    assert way(HARD) > 1.2 * way(PLAIN)


@pytest.mark.parametrize('frames', [2, 5])
def test_the_number_of_frames(roots, frames):
    for name in ('static', 'bl30k', 'main'):
        dataset = open_training_set(
            name, size=SIZE, **roots, synthetic_root=roots['static_root'], frames=frames, difficulty='hard'
        )
        for sample in samples(dataset, 4):
            assert sample['rgb'].shape == (frames, 3, SIZE, SIZE)
            assert sample['target'].shape == (frames, SIZE, SIZE)
