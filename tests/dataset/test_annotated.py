"""Clips made of the annotated frames of a video."""

import numpy as np
import pytest
import torch

from dataset import annotated
from dataset.annotated import AnnotatedDataset
from dataset.augment import IMAGENET_MEAN, IMAGENET_STD
from dataset.io import DataError
from dataset.sampling import Address


@pytest.fixture
def frame():
    """A red and a blue object on green ground."""
    image = np.full((120, 200, 3), (0, 200, 0), np.uint8)
    labels = np.zeros((120, 200), np.uint8)
    labels[30:70, 40:90], labels[60:100, 120:160] = 3, 8
    image[labels == 3], image[labels == 8] = (220, 0, 0), (0, 0, 220)
    return image, labels


def colours(sample) -> np.ndarray:
    """[T, S, S, 3] from 0 to 1."""
    return sample['rgb'].permute(0, 2, 3, 1).numpy() * IMAGENET_STD + IMAGENET_MEAN


def test_masks_are_where_the_objects_are(frame):
    dataset = AnnotatedDataset([frame], size=96, distractors=0, occluders=0)
    seen = 0
    for index in range(20):
        sample = dataset[Address(0, index, 0)]
        assert sample['rgb'].shape == (3, 3, 96, 96)
        assert sample['masks'].shape == (3, 2, 96, 96)
        red, green, blue = np.moveaxis(colours(sample), -1, 0)
        is_red, is_blue = (red > 0.5) & (green < 0.2), (blue > 0.5) & (green < 0.2)
        asked_for = [sample['target'].numpy() == k for k in (1, 2) if sample['selector'][k - 1]]
        for mask in asked_for:  # the second one is not asked for where the first frame does not show it
            colour = max((is_red, is_blue), key=lambda each: (mask & each).sum())
            assert (mask & colour).sum() >= 0.75 * max(mask.sum(), colour.sum()) - 30  # but for edges, which are soft
            seen += mask.any()
    assert seen >= 20  # the object that the camera looks at, and now and then the other one


def test_objects_move_and_samples_depend_on_their_address_alone(frame):
    dataset = AnnotatedDataset([frame, frame], size=64)
    assert len(dataset) == 2
    one, again, other = (dataset[Address(0, epoch, 1)] for epoch in (0, 0, 1))
    assert torch.equal(one['rgb'], again['rgb'])
    assert torch.equal(one['target'], again['target'])
    assert not torch.equal(one['rgb'], other['rgb'])
    assert not torch.equal(one['target'][0], one['target'][2])


def test_copies_and_occluders_are_background(frame):
    image, labels = frame
    labels = np.where(labels == 3, labels, 0).astype(np.uint8)
    dataset = AnnotatedDataset([(image, labels)], size=96, distractors=1, occluders=1)
    unlabelled = 0
    for index in range(10):
        sample = dataset[Address(0, index, 0)]
        assert sample['selector'].tolist() == [1, 0]
        red, green, _ = np.moveaxis(colours(sample), -1, 0)
        unlabelled += ((red > 0.5) & (green < 0.2) & (sample['target'].numpy() == 0)).sum()
    assert unlabelled > 1000


def test_large_frames_are_reduced_and_the_hole_is_filled(frame, monkeypatch):
    monkeypatch.setattr(annotated, 'WORKING_SIZE', 60)
    dataset = AnnotatedDataset([frame])
    [source] = dataset.frames
    assert source.labels.shape == (60, 100)
    assert set(np.unique(source.labels)) == {0, 3, 8}
    assert (source.ground[..., 1] > 120).all()  # green everywhere


def test_without_an_object_there_is_nothing_to_learn(frame):
    image, labels = frame
    with pytest.raises(DataError, match='at least one annotated frame that shows an object'):
        AnnotatedDataset([(image, np.zeros_like(labels))])


@pytest.mark.parametrize('change', [lambda image: image[:-1], lambda image: image / 255, lambda image: image[..., 0]])
def test_images_that_do_not_fit_their_labels_are_refused(frame, change):
    image, labels = frame
    with pytest.raises(DataError, match=r'expected images uint8 \[H, W, 3\] with labels uint8 \[H, W\], found'):
        AnnotatedDataset([(change(image), labels)])


def test_an_object_that_is_gone_when_its_frame_is_reduced(frame):
    image, labels = np.zeros((1080, 1920, 3), np.uint8), np.zeros((1080, 1920), np.uint8)
    labels[502:503, 700:701] = 1
    assert len(AnnotatedDataset([(image, labels), frame])) == 1
    with pytest.raises(DataError, match='also when its shorter side is reduced to 480 pixels'):
        AnnotatedDataset([(image, labels)])


def test_objects_that_the_first_frame_does_not_show_are_not_asked_for(frame):
    """The network gets the first mask, and cannot find an object that is not in it."""
    image, labels = frame
    far = np.full((120, 900, 3), (0, 200, 0), np.uint8), np.zeros((120, 900), np.uint8)
    far[0][:, :200], far[1][:, :200] = image, labels
    far[0][30:70, 800:850], far[1][30:70, 800:850] = (200, 200, 0), 5
    dataset = AnnotatedDataset([far], size=64, distractors=0, occluders=0)
    alone = 0
    for index in range(40):
        sample = dataset[Address(0, index, 0)]
        there = sample['masks'][0].flatten(1).any(dim=1)
        assert sample['selector'][1] == there[1]
        assert there[0] or not sample['target'].any()
        alone += sample['selector'].tolist() == [1, 0]
    assert alone > 5
