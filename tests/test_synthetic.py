"""Clips composed of cut-outs: what moves, what covers what, and where they enter training."""

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.io import DataError
from dataset.sampling import Address
from dataset.static import find_pairs
from dataset.synthetic import CutOuts, Layer, Mixture, SyntheticDataset
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
        return Layer([np.full((8, 8, 3), level, np.uint8)], coverage)

    frames, labels = [np.zeros((8, 8, 3), np.uint8)], np.zeros((1, 8, 8), np.uint8)
    labels[:, :, 7] = 1
    for each in (layer(100, slice(0, 5)), layer(200, slice(3, 6))):
        each.paste(frames)
        each.paste_label(labels)
    assert frames[0][0, :, 0].tolist() == [100, 100, 100, 200, 200, 200, 0, 0]
    assert labels[0, 0].tolist() == [2, 2, 2, 3, 3, 3, 0, 1]


def test_pasting_blends_along_the_edge():
    frames = [np.full((1, 1, 3), 10, np.uint8)]
    Layer([np.full((1, 1, 3), 210, np.uint8)], np.full((1, 1, 1), 51, np.uint8)).paste(frames)
    assert frames[0].ravel().tolist() == [50, 50, 50]


def test_without_a_free_label_a_cut_out_only_distracts():
    labels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    before = labels.copy()
    Layer([np.zeros((16, 16, 3), np.uint8)], np.full((1, 16, 16), 255, np.uint8)).paste_label(labels)
    assert np.array_equal(labels, before)


def test_video_clips_get_a_second_object(roots, pairs):
    """Half of the clips; the others are what they are without cut-outs, but for the draw that decides."""
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
