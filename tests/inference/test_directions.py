"""The backward pass equals a forward pass over the reversed video, and ``both`` combines the results of two passes."""

from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from dataset.io import DataError, read_image
from dataset.mask_files import GivenMask
from inference import InferenceCore, directions, video_file
from inference.directions import Annotations, Known, Propagation, WaitingPass, blend
from inference.sources import FolderSource, open_source
from inference.video_file import VideoReader, VideoWriter
from tests.conftest import APPEARING, FRAMES, GOLDEN

H, W = 110, 182


def link(folder, frames):
    """A folder with these frames in this order."""
    folder.mkdir()
    for number, frame in enumerate(frames):
        (folder / f'{number:05d}.png').symlink_to(frame)
    return folder


def source(folder, *masks):
    """A folder's frames; ``masks``: pairs of frame and file."""
    found = FolderSource(folder, fps=Fraction(25))
    found.annotate([GivenMask((file,), frame) for frame, file in masks])
    return found


@pytest.fixture
def run(small_network, tmp_path):
    """Number of each frame -> its probabilities, labels and objects."""

    def run(source, direction, **options):
        options = {'size': 48} | options
        way = Propagation(lambda: InferenceCore(small_network, **options), source, direction, tmp_path / 'waiting')
        found = list(way.frames())
        way.remove()
        assert not (tmp_path / 'waiting').exists()
        assert len(found) == way.steps
        final = {frame.number: frame for frame in found if frame.wanted}
        assert len(final) == len([frame for frame in found if frame.wanted])
        return final

    return run


def same(frame, other):
    return (
        frame.objects == other.objects and torch.equal(frame.prob, other.prob) and torch.equal(*labels(frame, other))
    )


def labels(*frames):
    return [frame.labels for frame in frames]


MASKS = [(number, GOLDEN / 'appearing' / f'{number:05d}.png') for number in APPEARING.values()]


def test_backwards_is_forwards_over_the_reversed_folder(run, tmp_path):
    n = len(FRAMES)
    forward = run(source(link(tmp_path / 'clip', FRAMES), *MASKS), 'forward')
    reverse = source(link(tmp_path / 'reversed', FRAMES[::-1]), *[(n - 1 - frame, file) for frame, file in MASKS])
    backward = run(reverse, 'backward')
    assert len(forward) == len(backward) == n
    for number, frame in forward.items():
        assert same(frame, backward[n - 1 - number])
        assert backward[n - 1 - number].name == f'{n - 1 - number:05d}'
    assert {tuple(frame.objects) for frame in forward.values()} == {(2,), (2, 5), (2, 5, 9)}


def test_both_ways_from_the_first_frame_is_forwards(run, tmp_path):
    clip = link(tmp_path / 'clip', FRAMES)
    forward, both = (run(source(clip, (0, GOLDEN / 'first_mask.png')), way) for way in ('forward', 'both'))
    assert forward.keys() == both.keys()
    assert all(same(forward[number], both[number]) for number in forward)


def test_one_mask_in_the_middle(run, tmp_path):
    clip = link(tmp_path / 'clip', FRAMES)
    forward, backward, both = (
        run(source(clip, (5, GOLDEN / 'first_mask.png')), way) for way in ('forward', 'backward', 'both')
    )
    assert list(both) == [4, 3, 2, 1, 0, *range(5, len(FRAMES))]
    for number, frame in both.items():
        assert same(frame, (backward if number < 5 else forward)[number])
        other = (forward if number < 5 else backward)[number]
        assert number == 5 or (other.objects == [] and not other.labels.any())


def test_objects_that_appear_and_corrections_in_between(run, tmp_path):
    """An object that one pass knows has its mask from that pass; one that both know has a mask between the two."""
    clip = link(tmp_path / 'clip', FRAMES)
    masks = [
        (2, GOLDEN / 'appearing' / '00000.png'),
        (5, GOLDEN / 'appearing' / '00004.png'),
        (8, GOLDEN / 'appearing/00000.png'),
    ]
    forward, backward, both = (run(source(clip, *masks), way) for way in ('forward', 'backward', 'both'))
    assert forward.keys() == backward.keys() == both.keys()
    for number, frame in both.items():
        if number < 2:
            assert same(frame, backward[number])
        elif number >= 8:
            assert same(frame, forward[number])
        else:
            objects = {2, 5} if number <= 5 else {5, 2}
            assert {*frame.objects} == objects
            torch.testing.assert_close(frame.prob.sum(dim=0), torch.ones(H, W))
    # Object 5 is annotated at frame 5 alone: before it the backward pass knows it, after it the forward one.
    assert [frame.objects for _, frame in sorted(forward.items())][2:6] == [[2], [2], [2], [2, 5]]
    assert [frame.objects for _, frame in sorted(backward.items())][5:9] == [[2, 5], [2], [2], [2]]
    far = [(both[number].prob[1] - forward[number].prob[1]).abs().mean() for number in range(2, 8)]
    assert far[0] < 0.01 < far[-1]


def known(objects, *planes):
    planes = torch.tensor(planes, dtype=torch.float32).reshape(len(objects), 1, -1)
    return Known(torch.cat([1 - planes.sum(dim=0, keepdim=True), planes]), objects)


def test_the_blend_by_hand():
    annotations = Annotations({0: (1,), 2: (3,), 10: (1, 2)})
    assert [annotations.nearness(frame, 1) for frame in (0, 5, 9, 10, 12)] == [1, 0.5, pytest.approx(0.1), 1, 1]
    assert [annotations.nearness(frame, 2) for frame in (0, 9, 10)] == [0, 0, 1]
    assert [annotations.nearness(frame, None) for frame in (0, 1, 2, 4)] == [1, 0.5, 1, 0.75]
    # Both passes know object 1, only the backward pass knows object 2, and only the forward pass object 3.
    found = blend(4, known([1, 3], [0.8, 0.0], [0.0, 0.5]), known([2, 1], [0.1, 0.0], [0.4, 0.0]), annotations)
    assert found.objects == [1, 3, 2]
    one = 0.6 * 0.8 + 0.4 * 0.4
    grounds = 0.75 * 0.2 * (1 - 0.1) + 0.25 * 0.5, 0.75 * 0.5 + 0.25 * (1 - 0.5)
    first = torch.tensor([grounds[0], one, 0.0, 0.1])
    torch.testing.assert_close(found.prob[:, 0, 0], first / first.sum())
    torch.testing.assert_close(found.prob[:, 0, 1], torch.tensor([grounds[1], 0.0, 0.5, 0.0]))


def test_an_object_of_one_pass_keeps_its_mask():
    """The pass that does not know the object yet takes it for background, which must not reduce its probability."""
    found = blend(9, known([1], [0.6, 0.4]), known([2], [0.0, 0.0]), Annotations({0: (1,), 10: (2,)}))
    torch.testing.assert_close(found.prob[1, 0], torch.tensor([0.6, 0.4]))


@pytest.mark.parametrize('size', [None, 48])
def test_what_waits_is_small_and_comes_back(tmp_path, size, small_network, clip, first_mask):
    prob = InferenceCore(small_network).step(clip[0], first_mask)
    waiting = WaitingPass(tmp_path / 'waiting')
    with waiting:
        waiting.put(3, Known(prob, [4, 2, 7]), (size or H, (size or H) * W // H))
    found = waiting.get(3, (H, W), torch.device('cpu'))
    assert found.objects == [4, 2, 7]
    assert (found.prob - prob).abs().max() < (0.01 if size is None else 1)
    assert (found.to_labels() != Known(prob, [4, 2, 7]).to_labels()).float().mean() < 0.03
    [file] = (tmp_path / 'waiting').iterdir()
    assert file.stat().st_size < 3 * H * W * directions.BYTES
    waiting.remove()
    assert not (tmp_path / 'waiting').exists()


def test_no_room_is_an_error_before_the_first_pass(run, tmp_path, monkeypatch):
    monkeypatch.setattr('shutil.disk_usage', lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(InferenceCore, 'step', lambda *args, **options: pytest.fail('a frame was computed'))
    clip, mask = link(tmp_path / 'clip', FRAMES), GOLDEN / 'first_mask.png'
    with pytest.raises(OSError, match=r'keeping 7 frames of one pass for the other needs 0\.0 MB of free disk'):
        run(source(clip, (2, mask), (9, mask)), 'both')
    assert not (tmp_path / 'waiting').exists()


def test_a_direction_that_there_is_not(run):
    with pytest.raises(ValueError, match='direction: expected one of forward, backward, both'):
        run(source(GOLDEN / 'clip', (2, GOLDEN / 'first_mask.png')), 'sideways')


def test_a_camera_has_one_direction(run, tmp_path):
    path = tmp_path / 'clip.mp4'
    pytest.importorskip('av')
    with VideoWriter(path, W, H, time_base=Fraction(1, 25), frame_rate=Fraction(25)) as writer:
        writer.write(read_image(FRAMES[0]), 0)
    camera = open_source(f'camera:{path}', fps=Fraction(25))
    camera.annotate([GivenMask((GOLDEN / 'first_mask.png',))])
    for direction in ('backward', 'both'):
        with pytest.raises(DataError, match='segmented forwards'):
            run(camera, direction)


def test_a_video_file_as_the_folder_of_its_frames(run, tmp_path, monkeypatch):
    pytest.importorskip('av')
    monkeypatch.setattr(video_file, 'CHUNK_BYTES', 0)
    monkeypatch.setattr(video_file, 'CHUNK_FRAMES', 3)
    path, folder = tmp_path / 'clip.mp4', tmp_path / 'clip'
    with VideoWriter(path, W, H, time_base=Fraction(1, 25), frame_rate=Fraction(25)) as writer:
        for number, frame in enumerate(FRAMES):
            writer.write(read_image(frame), number)
    folder.mkdir()
    for number, (image, _) in enumerate(VideoReader(path)):
        Image.fromarray(image).save(folder / f'{number:05d}.png')
    masks = [(3, GOLDEN / 'first_mask.png'), (9, GOLDEN / 'first_mask.png')]
    for direction in ('backward', 'both'):
        video = open_source(str(path), fps=Fraction(25))
        video.annotate([GivenMask((file,), frame) for frame, file in masks])
        expected, found = (run(each, direction) for each in (source(folder, *masks), video))
        assert list(expected) == list(found)
        assert all(same(expected[number], found[number]) for number in expected)
