import csv
import json
import logging
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dataset.io import DataError, read_mask, write_mask
from scripts.evaluate import evaluate, main
from tests.conftest import REPOSITORY
from util.metrics import boundary, boundary_accuracy, region_similarity, statistics

SHARED = REPOSITORY.parent / 'shared' / 'data'


def half_plane(column: int, size: tuple[int, int] = (100, 100)) -> np.ndarray:
    """True left of a column."""
    return np.arange(size[1])[None].repeat(size[0], 0) < column


def square(top: int, left: int, side: int, *, label: int = 1, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[top : top + side, left : left + side] = label
    return mask


# measures


def test_j_by_hand():
    truth, result = square(0, 0, 4) > 0, square(2, 1, 4) > 0  # overlap 2 x 3
    assert region_similarity(truth, result) == 6 / (16 + 16 - 6)
    assert region_similarity(truth, truth) == 1
    empty = np.zeros_like(truth)
    assert region_similarity(truth, empty) == region_similarity(empty, truth) == 0
    assert region_similarity(empty, empty) == 1


def test_boundary_by_hand():
    mask = np.array([[0, 0, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool)
    edges = [[0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(boundary(mask), edges)


def test_the_image_border_is_no_boundary():
    assert not boundary(np.ones((4, 5), bool)).any()
    corner = np.zeros((4, 5), bool)
    corner[2:, 3:] = True
    edges = [[0, 0, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0]]
    np.testing.assert_array_equal(boundary(corner), edges)


def test_f_tolerance_is_the_rounded_up_share_of_the_diagonal():
    assert np.ceil(0.008 * np.hypot(100, 100)) == 2
    assert boundary_accuracy(half_plane(50), half_plane(52)) == 1
    assert boundary_accuracy(half_plane(50), half_plane(53)) == 0
    assert np.ceil(0.008 * np.hypot(480, 854)) == 8
    assert boundary_accuracy(half_plane(50, (480, 854)), half_plane(58, (480, 854))) == 1
    assert boundary_accuracy(half_plane(50, (480, 854)), half_plane(59, (480, 854))) == 0


def test_f_of_empty_masks():
    some, empty, full = half_plane(50), np.zeros((100, 100), bool), np.ones((100, 100), bool)
    assert boundary_accuracy(empty, empty) == 1
    assert boundary_accuracy(some, empty) == boundary_accuracy(empty, some) == 0
    assert boundary_accuracy(full, full) == boundary_accuracy(full, empty) == 1  # neither has a boundary


def f_by_definition(truth: np.ndarray, result: np.ndarray) -> float:
    """F from the distances between all pairs of boundary pixels."""

    def pixels(mask):
        height, width = mask.shape
        return np.array(
            [
                (y, x)
                for y in range(height)
                for x in range(width)
                if (x + 1 < width and mask[y, x] != mask[y, x + 1])
                or (y + 1 < height and mask[y, x] != mask[y + 1, x])
                or (x + 1 < width and y + 1 < height and mask[y, x] != mask[y + 1, x + 1])
            ]
        )

    a, b = pixels(truth), pixels(result)
    squared = ((a[:, None] - b[None]) ** 2).sum(-1)
    near = squared <= np.ceil(0.008 * np.hypot(*truth.shape)) ** 2
    precision, recall = near.any(0).mean(), near.any(1).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize('seed', range(6))
def test_f_equals_its_definition(seed):
    """Blobs at several tolerances: inside the image for odd seeds, across its borders for even ones."""
    generator = np.random.default_rng(seed)
    size = (60 + 25 * seed, 90 + 60 * seed)
    masks = []
    for _ in range(2):
        noise = cv2.GaussianBlur(generator.normal(size=size), (0, 0), 12)
        if seed % 2:
            noise[:10] = noise[-10:] = noise[:, :10] = noise[:, -10:] = noise.min()
        masks.append(noise > np.quantile(noise, 0.8))
    expected = f_by_definition(*masks)
    assert 0.01 < expected < 0.99
    assert boundary_accuracy(*masks) == pytest.approx(expected, abs=1e-12)


def test_statistics_by_hand():
    values = [0.9, 0.8, 0.4, 0.5, 0.7, 0.6, 0.2]
    numbers = statistics(values)
    assert numbers['mean'] == pytest.approx(4.1 / 7)
    assert numbers['recall'] == pytest.approx(4 / 7)  # 0.5 itself is not above
    assert numbers['decay'] == pytest.approx(2.1 / 3 - 0.8 / 2)  # borders 1, 3, 4, 6, 7
    assert statistics([0.75]) == {'mean': 0.75, 'recall': 1.0, 'decay': 0.0}


# data sets


def write_video(folder: Path, masks: list[np.ndarray], *, step: int = 1) -> None:
    for i, mask in enumerate(masks):
        write_mask(folder / f'{i * step:05d}.png', mask)


def davis_tree(root: Path, videos: dict[str, list[np.ndarray]]) -> Path:
    for name, masks in videos.items():
        write_video(root / 'trainval' / 'Annotations' / '480p' / name, masks)
        (root / 'trainval' / 'JPEGImages' / '480p' / name).mkdir(parents=True)
    image_sets = root / 'trainval' / 'ImageSets' / '2017'
    image_sets.mkdir(parents=True)
    (image_sets / 'val.txt').write_text('\n'.join(videos) + '\n')
    return root


@pytest.fixture
def davis(tmp_path) -> tuple[Path, Path]:
    """Results and root. Two objects in one video, the second of them lost; one object in the other, perfect."""
    first, second = square(5, 5, 10), square(20, 30, 12, label=2)
    nothing = np.zeros_like(first)
    root = davis_tree(tmp_path / 'root', {'one': [square(10, 10, 9, label=7)] * 6, 'two': [first + second] * 6})
    write_video(tmp_path / 'results' / 'one', [nothing, *[square(10, 10, 9, label=7)] * 4, nothing])
    write_video(tmp_path / 'results' / 'two', [nothing, *[first] * 4, nothing])
    return tmp_path / 'results', root


def test_davis_2017(davis):
    """A hundred per cent in spite of empty first and last frames; means are over objects, not videos."""
    numbers = evaluate(*davis, dataset='davis2017')
    one, two = numbers['sequences']['one'], numbers['sequences']['two']
    assert one['objects']['7']['J'] == {
        'mean': 1,
        'recall': 1,
        'decay': 0,
        'frames': dict.fromkeys(['00001', '00002', '00003', '00004'], 1.0),
    }
    assert two['objects'].keys() == {'1', '2'}
    assert two['objects']['2']['F'] == {
        'mean': 0,
        'recall': 0,
        'decay': 0,
        'frames': dict.fromkeys(['00001', '00002', '00003', '00004'], 0.0),
    }
    assert two['J']['mean'] == two['F']['recall'] == two['J&F'] == 0.5
    for value in (numbers['J&F'], numbers['J']['mean'], numbers['F']['mean'], numbers['J']['recall']):
        assert value == pytest.approx(2 / 3)


def test_inner_davis_root(davis):
    results, root = davis
    assert evaluate(results, root / 'trainval', dataset='davis2017') == evaluate(*davis, dataset='davis2017')


def test_an_object_that_left_is_scored(tmp_path):
    thing, nothing = square(5, 5, 10), square(0, 0, 0)
    root = davis_tree(tmp_path / 'root', {'v': [thing, thing, nothing, nothing, thing]})
    write_video(tmp_path / 'results' / 'v', [thing, thing, nothing, thing, thing])
    entry = evaluate(tmp_path / 'results', root, dataset='davis2017')['sequences']['v']['objects']['1']
    assert list(entry['J']['frames'].values()) == list(entry['F']['frames'].values()) == [1, 1, 0]


def test_davis_2016_takes_every_label_for_the_object(tmp_path, caplog):
    truth = square(5, 5, 10, label=3) + square(20, 20, 10, label=255)
    root = davis_tree(tmp_path / 'root', {'dog': [truth] * 4, 'bear': [truth] * 4})
    write_video(tmp_path / 'results' / 'dog', [square(5, 5, 10, label=9) + square(20, 20, 10)] * 4)
    with caplog.at_level(logging.INFO):
        numbers = evaluate(tmp_path / 'results', root, dataset='davis2016')
    assert numbers['J&F'] == 1
    assert numbers['sequences'].keys() == {'dog'}  # bear is no validation video of 2016
    assert '1 of the 20' in caplog.text


def test_folder_scores_an_object_after_its_first_frame_up_to_the_last(tmp_path):
    early, late = square(5, 5, 10, label=2), square(20, 30, 10, label=5)
    nothing, both, shifted = np.zeros_like(early), early + late, early + square(20, 35, 10, label=5)
    write_video(tmp_path / 'root' / 'Annotations' / 'v', [nothing, early, early, both, both], step=5)
    write_video(tmp_path / 'results' / 'v', [nothing, nothing, early, early, shifted], step=5)
    (tmp_path / 'results' / 'v' / '00000.png').unlink()  # nothing to segment yet
    objects = evaluate(tmp_path / 'results', tmp_path / 'root', dataset='folder')['sequences']['v']['objects']
    assert objects['2']['J']['frames'] == {'00010': 1, '00015': 1, '00020': 1}
    assert objects['5']['J']['frames'] == {'00020': pytest.approx(50 / 150)}


def test_an_object_of_the_last_frame_alone_is_named_and_left_out(tmp_path, caplog):
    early, late = square(5, 5, 10, label=2), square(20, 30, 10, label=5)
    for folder in (tmp_path / 'root' / 'Annotations' / 'v', tmp_path / 'results' / 'v'):
        write_video(folder, [early, early, early + late])
    objects = evaluate(tmp_path / 'results', tmp_path / 'root', dataset='folder')['sequences']['v']['objects']
    assert objects.keys() == {'2'}
    assert 'v: object 5' in caplog.text


@pytest.fixture
def youtube(tmp_path) -> tuple[Path, Path]:
    """A dog followed perfectly and a cat that is lost; frames 0, 5, 10, and 15 that no object lists."""
    dog, cat = square(5, 5, 10, label=1), square(20, 30, 10, label=4)
    split = tmp_path / 'root' / 'valid'
    write_video(split / 'Annotations' / 'v', [dog, dog + cat, dog + cat, dog + cat], step=5)
    write_video(tmp_path / 'results' / 'Annotations' / 'v', [dog, dog, dog], step=5)
    write_meta(split, {})
    return tmp_path / 'results', tmp_path / 'root'


def write_meta(split: Path, lists: dict) -> None:
    objects = {
        '1': {'category': 'dog', 'frames': ['00000', '00005', '00010']},
        '4': {'category': 'cat', 'frames': ['00005', '00010']},
    }
    (split / 'meta.json').write_text(json.dumps({'videos': {'v': {'objects': objects}}, **lists}))


def test_youtube(youtube):
    numbers = evaluate(*youtube, dataset='youtube')
    objects = numbers['sequences']['v']['objects']
    assert objects['1']['J']['frames'] == {'00005': 1, '00010': 1}
    assert objects['4']['F']['frames'] == {'00010': 0}
    assert objects['4']['category'] == 'cat'
    assert numbers['J&F'] == 0.5
    assert not {'G', 'seen', 'unseen'} & numbers.keys()


@pytest.mark.parametrize('lists', [{'seen': ['dog']}, {'unseen': ['cat']}, {'seen': ['dog'], 'unseen': ['cat']}])
def test_youtube_seen_and_unseen(youtube, lists):
    results, root = youtube
    write_meta(root / 'valid', lists)
    numbers = evaluate(results, root, dataset='youtube')
    assert numbers['G'] == 0.5
    assert numbers['seen']['J']['mean'] == numbers['seen']['F']['mean'] == 1
    assert numbers['unseen']['J']['mean'] == numbers['unseen']['F']['mean'] == 0


def test_g_weighs_seen_and_unseen_alike(tmp_path):
    """Two seen objects at 1 and an unseen one at 0: the mean over objects is 2/3, G 1/2."""
    masks = square(2, 2, 8) + square(12, 2, 8, label=2) + square(22, 30, 8, label=3)
    write_video(tmp_path / 'root' / 'Annotations' / 'v', [masks] * 3)
    write_video(tmp_path / 'results' / 'v', [np.where(masks == 3, 0, masks).astype(np.uint8)] * 3)
    frames = ['00000', '00001', '00002']
    objects = {str(i): {'category': name, 'frames': frames} for i, name in ((1, 'dog'), (2, 'dog'), (3, 'cat'))}
    meta = {'videos': {'v': {'objects': objects}}, 'unseen': ['cat']}
    (tmp_path / 'root' / 'meta.json').write_text(json.dumps(meta))
    numbers = evaluate(tmp_path / 'results', tmp_path / 'root', dataset='youtube')
    assert numbers['J&F'] == pytest.approx(2 / 3)
    assert numbers['G'] == 0.5


# void, and ground truth of a user's own


def ring(mask: np.ndarray) -> np.ndarray:
    """A mask whose objects are outlined by 255."""
    return np.where((mask == 0) & (cv2.dilate(mask, np.ones((5, 5), np.uint8)) > 0), np.uint8(255), mask)


@pytest.mark.parametrize('dataset', ['davis2017', 'youtube', 'folder'])
def test_void_pixels_do_not_count(tmp_path, dataset):
    """The score is the same if a result has no object at void pixels, has one there, or copies label 255."""
    mask = square(5, 5, 10) + square(20, 30, 12, label=2)
    frames = [mask, mask, ring(mask), ring(mask), ring(mask)]
    root = tmp_path / 'root'
    if dataset == 'davis2017':
        davis_tree(root, {'v': frames})
    else:
        write_video(root / 'Annotations' / 'v', frames)
        objects = {str(i): {'frames': [f'{number:05d}' for number in range(5)]} for i in (1, 2)}
        (root / 'meta.json').write_text(json.dumps({'videos': {'v': {'objects': objects}}}))
    filled = np.where(ring(mask) == 255, 1, mask).astype(np.uint8)
    for name, masks in {'without': [mask] * 5, 'filled': [filled] * 5, 'copied': frames}.items():
        write_video(tmp_path / name / 'v', masks)
        objects = evaluate(tmp_path / name, root, dataset=dataset)['sequences']['v']['objects']
        assert objects.keys() == {'1', '2'}
        assert set(objects['2']['F']['frames'].values()) == {1}
        first, *others = objects['1']['J']['frames'].values()
        assert set(others) == {1}
        # In the first scored frame no pixel is void, so filled ones are wrong.
        assert (first == 1) == (name != 'filled')


def test_255_alone_is_an_object(tmp_path):
    mask = square(5, 5, 10, label=255)
    root = davis_tree(tmp_path / 'root', {'v': [mask] * 4})
    write_video(tmp_path / 'results' / 'v', [mask] * 4)
    assert evaluate(tmp_path / 'results', root, dataset='davis2017')['sequences']['v']['objects'].keys() == {'255'}


@pytest.mark.parametrize('channels', [1, 3])
def test_black_and_white_results_against_several_objects_are_an_error(davis, channels):
    results, root = davis
    for path in (results / 'two').iterdir():
        cv2.imwrite(str(path), np.dstack([(read_mask(path) > 0) * np.uint8(255)] * channels))
    with pytest.raises(DataError, match=r'two/00001\.png: .*\(1, 2\), found black and white'):
        evaluate(results, root, dataset='davis2017')


def test_own_ground_truth_is_read_as_the_masks_of_a_user(tmp_path):
    """The masks have a tool's own colours, a palette in another order, or a folder for each object."""
    mask = square(5, 5, 10) + square(20, 30, 12, label=2)
    colours = np.array([(0, 0, 0), (250, 50, 83), (52, 209, 183)], np.uint8)
    for number in range(4):
        for video in ('coloured', 'reordered'):
            write_mask(tmp_path / 'results' / video / f'{number}.png', mask)
        write_mask(tmp_path / 'results' / 'objects' / f'{number}.png', mask)
        image = Image.fromarray(colours[mask])
        save(image, tmp_path / 'root' / 'Annotations' / 'coloured' / f'{number}.png')
        save(image.quantize(3), tmp_path / 'root' / 'Annotations' / 'reordered' / f'{number}.png')
        for label in (1, 2):
            path = tmp_path / 'root' / 'Annotations' / 'objects' / str(label) / f'{number}.png'
            save(Image.fromarray((mask == label) * np.uint8(255)), path)
        for video in ('coloured', 'reordered', 'objects'):
            save(image, tmp_path / 'root' / 'JPEGImages' / video / f'{number}.png')
    numbers = evaluate(tmp_path / 'results', tmp_path / 'root', dataset='folder')
    assert numbers['sequences'].keys() == {'coloured', 'reordered', 'objects'}
    assert numbers['J&F'] == 1


@pytest.mark.parametrize('single', [False, True])
def test_what_the_network_was_given_is_not_scored(tmp_path, single, caplog):
    """Masks that were given to the network come out unchanged, and would get a score of 100."""
    caplog.set_level('INFO')
    first, second = square(5, 5, 10), square(20, 30, 12, label=2)
    nothing = np.zeros_like(first)
    truth = tmp_path / 'v' / 'Annotations' / ('' if single else 'v')
    write_video(truth, [first, first + second, first + second, first + second])
    write_video(tmp_path / 'results' / 'v', [first, first + second, nothing, first])
    arguments = tmp_path / 'results' / ('v' if single else ''), tmp_path / 'v'

    def objects(given: dict) -> dict:
        (tmp_path / 'results' / 'settings.json').write_text(json.dumps({'given': {'v': given}}))
        found = evaluate(*arguments, dataset='folder')['sequences']['v']['objects']
        return {label: entry['J']['frames'] for label, entry in found.items()}

    everything = {'1': {'00001': 1, '00002': 0, '00003': 1}, '2': {'00002': 0, '00003': 0}}
    assert objects({}) == everything
    assert 'which were given' not in caplog.text
    assert objects({'00000': [1], '00001': [1, 2]}) == {'1': {'00002': 0, '00003': 1}, '2': {'00002': 0, '00003': 0}}
    assert 'not scored are 1 mask(s) after the first of a video, which were given' in caplog.text
    assert objects({'00002': [2], '00003': [2]}) == {'1': {'00001': 1, '00002': 0, '00003': 1}}
    if not single:  # the settings in the folder above are another run's
        (tmp_path / 'results' / 'settings.json').rename(tmp_path / 'settings.json')
        found = evaluate(*arguments, dataset='folder')['sequences']['v']['objects']
        assert {label: entry['J']['frames'] for label, entry in found.items()} == everything
    with pytest.raises(DataError, match='4 of them given to the network'):
        objects({f'{number:05d}': [1, 2] for number in range(4)})
    if single:  # the run may have given the video another name
        settings = {'given': {'/home/me/clip.mp4': {'00002': [2], '00003': [2]}}}
        (tmp_path / 'results' / 'settings.json').write_text(json.dumps(settings))
        assert evaluate(*arguments, dataset='folder')['sequences']['v']['objects'].keys() == {'1'}


def test_the_script_says_how_to_leave_something_to_score(tmp_path):
    write_video(tmp_path / 'v' / 'Annotations', [square(5, 5, 10)] * 2)
    write_video(tmp_path / 'out', [square(5, 5, 10)] * 2)
    (tmp_path / 'out' / 'settings.json').write_text(json.dumps({'given': {'v': {'00000': [1], '00001': [1]}}}))
    arguments = [*map(str, ('--results', tmp_path / 'out', '--dataset', 'folder', '--root', tmp_path / 'v'))]
    with pytest.raises(DataError, match=r'eval_folder\.py with the first mask of each object alone') as error:
        main(arguments)
    assert error.value.options == ('first_only',)
    (tmp_path / 'v' / 'Annotations' / '00001.png').unlink()  # it would not help
    with pytest.raises(DataError, match='Later frames need masks, too') as error:
        main(arguments)
    assert 'first_only' not in str(error.value)


def test_results_that_equal_the_ground_truth_are_told(tmp_path, caplog):
    write_video(tmp_path / 'v' / 'Annotations', [square(5, 5, 10), square(6, 6, 10), square(7, 7, 10)])
    assert evaluate(tmp_path / 'v' / 'Annotations', tmp_path / 'v', dataset='folder')['J&F'] == 1
    assert 'equal the ground truth in every pixel' in caplog.text
    caplog.clear()
    write_video(tmp_path / 'out', [square(5, 5, 10), square(6, 6, 10), square(8, 7, 10)])
    assert evaluate(tmp_path / 'out', tmp_path / 'v', dataset='folder')['J&F'] < 1
    assert not caplog.text


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


# errors


def test_all_that_is_missing_is_listed(davis):
    results, _ = davis
    (results / 'two' / '00003.png').unlink()
    (results / 'two' / '00004.png').unlink()
    for path in (results / 'one').iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r'one: 6 of 6 frames(.|\n)*two: 2 of 6 frames: 00003, 00004'):
        evaluate(*davis, dataset='davis2017')


def test_another_size_is_an_error(davis):
    results, _ = davis
    write_mask(results / 'one' / '00002.png', np.zeros((20, 30), np.uint8))
    with pytest.raises(DataError, match=r'one/00002\.png: expected 60 x 40 .* found 30 x 20'):
        evaluate(*davis, dataset='davis2017')


def test_an_unknown_label_is_an_error(davis):
    results, _ = davis
    write_mask(results / 'two' / '00002.png', square(5, 5, 10, label=3))
    with pytest.raises(DataError, match=r'two/00002\.png: expected .*\(1, 2\), found also 3'):
        evaluate(*davis, dataset='davis2017', num_workers=2)


def test_a_damaged_result_is_an_error(davis):
    results, _ = davis
    (results / 'two' / '00002.png').write_bytes((results / 'two' / '00001.png').read_bytes()[:-30])
    with pytest.raises(DataError, match=r'two/00002\.png'):
        evaluate(*davis, dataset='davis2017')


def first_frame_alone(root: Path, video: str) -> None:
    for path in sorted((root / 'trainval' / 'Annotations' / '480p' / video).iterdir())[1:]:
        path.unlink()


def test_videos_too_short_to_score_are_left_out_until_none_is_left(davis, caplog):
    _, root = davis
    first_frame_alone(root, 'one')
    numbers = evaluate(*davis, dataset='davis2017')
    assert numbers['sequences'].keys() == {'two'}
    assert numbers['J&F'] == 0.5
    assert 'one: expected ground truth after the first annotated frame and before the last one, found 1' in caplog.text
    first_frame_alone(root, 'two')
    with pytest.raises(DataError, match=r'one: expected ground truth after .* nothing to score'):
        evaluate(*davis, dataset='davis2017')


def test_youtube_errors(youtube):
    results, root = youtube
    write_meta(root / 'valid', {'seen': ['dog'], 'unseen': ['horse']})
    with pytest.raises(DataError, match="'cat' is neither"):
        evaluate(results, root, dataset='youtube')
    (root / 'valid' / 'Annotations' / 'v' / '00010.png').unlink()
    with pytest.raises(DataError, match=r'found none for 1 frames .*00010\.png'):
        evaluate(results, root, dataset='youtube')
    for content in ('{', '[]', '{"videos": {"v": {"objects": {"1": {}}}}}', '{"videos": {}}'):
        (root / 'valid' / 'meta.json').write_text(content)
        with pytest.raises(DataError, match=r'meta\.json: (expected|lists no videos)'):
            evaluate(results, root, dataset='youtube')


def test_a_folder_without_videos_is_an_error(tmp_path):
    with pytest.raises(DataError, match='Annotations: expected ground truth'):
        evaluate(tmp_path, tmp_path, dataset='folder')


# the script


def run(*arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / 'scripts' / 'evaluate.py'), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_files_do_not_depend_on_the_number_of_processes(davis, tmp_path):
    results, root = davis
    outputs = []
    for workers in (1, 2):
        files = [tmp_path / f'{workers}' / name for name in ('numbers.json', 'numbers.csv')]
        done = run(
            '--results',
            results,
            '--dataset',
            'davis2017',
            '--root',
            root,
            '--num_workers',
            workers,
            '--json',
            files[0],
            '--csv',
            files[1],
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert '66.67' in done.stdout.splitlines()[-1]
        outputs.append([path.read_bytes() for path in files])
    assert outputs[0] == outputs[1]

    numbers = json.loads(outputs[0][0])
    assert numbers == evaluate(*davis, dataset='davis2017')
    rows = list(csv.DictReader(outputs[0][1].decode().splitlines()))
    assert [(row['sequence'], row['object'], float(row['J mean'])) for row in rows] == [
        ('one', '7', 1),
        ('two', '1', 1),
        ('two', '2', 0),
    ]


def test_errors_end_the_script_with_one_message(davis):
    results, root = davis
    (results / 'one' / '00001.png').unlink()
    done = run('--results', results, '--dataset', 'davis2017', '--root', root)
    assert done.returncode == 1
    assert done.stderr.startswith('error: expected a result')
    assert 'Traceback' not in done.stderr


def test_the_script_starts_without_torch():
    code = 'import sys; import scripts.evaluate; assert "torch" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, check=True)


# the official numbers


@pytest.mark.skipif(not (SHARED / 'stm_davis16_outputs').is_dir(), reason=f'needs {SHARED}/stm_davis16_outputs')
def test_every_frame_equals_the_official_scores():
    """Masks of STM on ten videos of DAVIS 2016, scored by the official toolkit."""
    folder = SHARED / 'stm_davis16_outputs'
    official = json.loads((folder / 'scores.json').read_text())
    numbers = evaluate(folder / 'masks', SHARED / 'DAVIS' / '2017', dataset='davis2016', num_workers=2)
    assert numbers['sequences'].keys() == official.keys()
    for name, sequence in numbers['sequences'].items():
        for measure in 'JF':
            ours, theirs = sequence['objects']['1'][measure], official[name][measure]
            frames = theirs['raw'][0]
            assert np.isnan([frames[0], frames[-1]]).all()
            assert list(ours['frames']) == [f'{i:05d}' for i in range(1, len(frames) - 1)]
            np.testing.assert_allclose(list(ours['frames'].values()), frames[1:-1], rtol=0, atol=1e-9)
            assert ours['mean'] == pytest.approx(theirs['mean'][0], abs=1e-9)
            assert ours['decay'] == pytest.approx(theirs['decay'][0], abs=1e-9)
