"""Sessions: propagation equals an uninterrupted run, corrections change what follows, uploads are kept in bounds."""

import tracemalloc
import zipfile
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dataset.io import DataError, read_mask
from inference.clip import Clip, LimitError, import_clip
from inference.core import InferenceCore
from inference.directions import Propagation
from inference.session import ClipSource, Session
from tests.conftest import FRAMES, tree


def masks(session) -> list[np.ndarray]:
    return [session.labels(frame) for frame in range(len(session))]


def run(session, start=0, direction='forward', **options) -> list[int]:
    """Propagate; the frames that were segmented."""
    found = session.propagate(start, direction, **options)
    return [reached.frame for reached in found if reached.labels is not None]


def test_propagation_is_the_core(session, labels, clip, small_network):
    session.paint(0, labels)
    core = InferenceCore(small_network)
    for reached in session.propagate(0):
        prob = core.step(
            clip[reached.frame],
            torch.from_numpy(labels) if reached.frame == 0 else None,
            last=reached.frame == len(clip) - 1,
        )
        assert np.array_equal(reached.labels, core.to_labels(prob))
        assert np.array_equal(reached.labels, session.labels(reached.frame))
        if reached.frame:
            assert session.confidence[reached.frame] == core.confidence(prob)
            assert reached.confidence == session.sureness()[reached.frame] == min(core.confidence(prob).values())
    assert reached.frame == len(clip) - 1


@pytest.mark.parametrize('start', [1, 4, 5, 7, 11])
def test_propagating_again_from_a_later_frame_changes_nothing(session, labels, start):
    session.paint(0, labels)
    session.paint(3, np.where(labels == 2, 2, 0).astype(np.uint8))
    run(session)
    expected, uncertain = masks(session), dict(session.confidence)
    for frame in range(start, len(session)):
        if frame not in session.painted:
            (session.folder / 'masks' / f'{FRAMES[frame].stem}.png').unlink()
    assert run(session, start) == list(range(start, len(session)))
    assert all(np.array_equal(a, b) for a, b in zip(masks(session), expected, strict=True))
    assert session.confidence == uncertain


def test_correction_changes_only_what_follows(session, labels):
    session.paint(0, labels)
    run(session)
    before = tree(session.folder / 'masks')
    correction = session.labels(6)
    correction[20:60, 40:90] = 2
    correction[:15, :30] = 5  # an object that appears
    session.paint(6, correction)
    assert session.objects(5) == [1, 2, 3]
    assert session.objects(6) == [1, 2, 3, 5]
    run(session, 6)
    after = tree(session.folder / 'masks')
    for frame, path in enumerate(FRAMES):
        assert (after[path.name] == before[path.name]) == (frame < 6)
    assert np.array_equal(session.labels(6), correction)
    # As one run over both annotations from the beginning.
    run(session)
    assert tree(session.folder / 'masks') == after


def test_object_left_out_of_a_correction_is_gone_there(session, labels):
    session.paint(0, labels)
    correction = np.where(labels == 3, 0, labels).astype(np.uint8)
    session.paint(4, correction)
    assert session.objects(4) == [1, 2, 3]
    results = {reached.frame: reached for reached in session.propagate(0)}
    assert 3 not in results[4].labels
    assert results[4].confidence == 1


def test_catching_up_computes_memory_frames_only(session, labels, monkeypatch):
    session.paint(0, labels)
    run(session)
    read = []
    monkeypatch.setattr(session, 'read_image', lambda frame: read.append(frame) or Session.read_image(session, frame))
    reached = [(reached.frame, reached.labels is None) for reached in session.propagate(9)]
    assert reached == [(0, True), (5, True), (9, False), (10, False), (11, False)]
    assert read == [0, 5, 9, 10, 11]


def test_stopping_keeps_what_is_done(session, labels):
    session.paint(0, labels)
    for reached in session.propagate(0):
        if reached.frame == 4:
            break
    assert session.masked() == [0, 1, 2, 3, 4]


def test_objects_begin_where_they_are_painted(session, labels):
    session.paint(3, labels)
    assert run(session, 0) == list(range(3, len(session)))
    assert 2 not in session.masked()
    assert not session.labels(2).any()


def test_nothing_painted(session, labels):
    nothing = np.zeros_like(labels)
    with pytest.raises(DataError, match='Nothing is painted yet'):
        run(session)
    with pytest.raises(DataError, match='Nothing is painted on frame 2'):
        session.paint(2, nothing)
    with pytest.raises(DataError, match='Frame 2 has no painted mask'):
        session.forget(2)
    session.paint(0, labels)
    session.paint(2, nothing)  # an empty mask now means that all objects are absent
    assert not {reached.frame: reached.labels for reached in session.propagate(0)}[2].any()
    session.forget(0)
    with pytest.raises(DataError, match='Nothing is painted yet'):
        run(session)


def test_forgetting_a_correction(session, labels):
    session.paint(0, labels)
    run(session)
    expected = tree(session.folder / 'masks')
    session.paint(5, np.where(labels == 1, 1, 0).astype(np.uint8))
    run(session, 5)
    session.forget(5)
    assert 5 not in session.masked()
    run(session, 5)
    assert tree(session.folder / 'masks') == expected


@pytest.mark.parametrize('start', [0, 4, 11])
def test_backwards_is_forwards_in_the_reversed_clip(session, labels, small_network, tmp_path, start):
    frames = Clip.of_images(FRAMES[::-1])
    mirror = Session(small_network, frames, tmp_path / 'mirror')
    other = np.where(labels == 2, 2, 0).astype(np.uint8)
    for frame, painted in ((9, labels), (4, other)):
        session.paint(frame, painted)
        mirror.paint(11 - frame, painted)
    reached = [(each.frame, each.labels is None) for each in session.propagate(start, 'backward')]
    assert reached == [(11 - each.frame, each.labels is None) for each in mirror.propagate(11 - start)]
    assert all(np.array_equal(a, b) for a, b in zip(masks(session), masks(mirror)[::-1], strict=True))
    assert session.confidence == {11 - frame: value for frame, value in mirror.confidence.items()}


def test_up_to_the_next_painted_frame(session, labels):
    for frame in (2, 6, 9):
        session.paint(frame, labels)
    assert session.reach(6, 'both', to_painted=True) == range(3, 9)
    assert session.reach(6, 'both', to_painted=False) == range(12)
    assert session.reach(4, 'backward', to_painted=True) == range(3, 5)
    assert run(session, 6, 'forward', to_painted=True) == [6, 7, 8]
    assert run(session, 6, 'backward', to_painted=True) == [6, 5, 4, 3]
    assert session.masked() == list(range(2, 10))
    between = masks(session)
    run(session)  # the state at frame 6 is that of a run over everything
    assert all(np.array_equal(session.labels(frame), between[frame]) for frame in (6, 7, 8))


def test_frames_that_no_pass_reaches(session, labels):
    session.paint(4, labels)
    with pytest.raises(DataError, match='Frames 0 to 3 cannot be reached forwards: objects are painted on'):
        run(session, 0, 'forward', to_painted=True)
    with pytest.raises(DataError, match='Frames 5 to 6 cannot be reached backwards'):
        run(session, 6, 'backward', to_painted=True)
    assert run(session, 2, 'both', to_painted=True) == [3, 2, 1, 0]


def test_both_ways_from_one_mask_is_each_way(session, labels):
    session.paint(4, labels)
    run(session, 4, 'backward')
    run(session, 4, 'forward')
    expected = state_of(session)
    session.undo()
    session.undo()
    assert run(session, 4, 'both') == [4, 3, 2, 1, 0, 4, 5, 6, 7, 8, 9, 10, 11]
    assert state_of(session) == expected


def test_both_ways_between_painted_frames_is_the_stream_in_both_directions(session, labels, tmp_path, small_network):
    """One object is known to only one of the passes, and another one is corrected."""
    session.paint(0, np.where(labels == 3, 0, labels).astype(np.uint8))
    session.paint(8, np.roll(labels, 5, axis=1))
    frames = range(len(session))
    propagation = Propagation(
        lambda: InferenceCore(small_network), ClipSource(session, frames, frames), 'both', tmp_path / 'waiting'
    )
    expected = {found.number: found for found in propagation.frames() if found.wanted}
    reached = [each.frame for each in session.propagate(8, 'both') if each.labels is not None]
    assert set(reached) == set(frames)
    for frame in frames:
        assert np.array_equal(session.labels(frame), expected[frame].labels)
    assert not (session.folder / 'waiting').exists()
    # Propagating only between the two painted frames gives the same masks.
    before, sure = masks(session), dict(session.confidence)
    for frame in range(3, 6):
        session.mask_path(frame).unlink()
    run(session, 4, 'both', to_painted=True)
    assert all(np.array_equal(a, b) for a, b in zip(masks(session), before, strict=True))
    assert session.confidence == sure
    # Neither pass alone gives these masks.
    for direction in ('forward', 'backward'):
        run(session, 4, direction, to_painted=True)
        assert any((session.labels(frame) != before[frame]).any() for frame in range(1, 8))


def test_no_room_for_what_waits_is_said_before_the_first_pass(session, labels, monkeypatch):
    session.paint(0, labels)
    session.paint(8, labels)
    before = state_of(session)
    monkeypatch.setattr('shutil.disk_usage', lambda path: type('Usage', (), {'free': 10}))
    with pytest.raises(OSError, match='free disk'):
        run(session, 4, 'both')
    assert state_of(session) == before


def state_of(session) -> tuple:
    return tree(session.folder / 'masks'), dict(session.painted), dict(session.confidence), dict(session.names)


def test_every_change_can_be_undone(session, labels):
    changes = [
        lambda: session.paint(3, labels),
        lambda: run(session, 3, 'both'),
        lambda: session.paint(6, np.where(labels == 2, 2, 0).astype(np.uint8)),
        lambda: run(session, 6, 'both', to_painted=True),
        lambda: session.rename(2, 'bird'),
        lambda: session.add_object('another'),
        lambda: session.remove(2),
        lambda: session.forget(3),
        lambda: session.clear(),
    ]
    states = []
    for change in changes:
        states.append(state_of(session))
        change()
        assert state_of(session) != states[-1]
    said = []
    for state in states[::-1]:
        said.append(session.undo())
        assert state_of(session) == state
    assert said[-1] == 'the mask of frame 3'
    assert said[-2] == 'propagating from frame 3'
    assert not list((session.folder / 'undo').iterdir())
    with pytest.raises(DataError, match='nothing to undo'):
        session.undo()


def test_undoing_a_propagation_that_was_stopped(session, labels):
    session.paint(0, labels)
    before = state_of(session)
    for reached in session.propagate(0):
        if reached.frame == 3:
            break
    assert session.masked() == [0, 1, 2, 3]
    session.undo()
    assert state_of(session) == before


def test_twenty_changes_are_kept(session, labels):
    session.paint(0, labels)
    for number in range(30):
        session.rename(1, str(number))
    for _ in range(20):
        session.undo()
    assert session.names[1] == '9'
    with pytest.raises(DataError, match='nothing to undo'):
        session.undo()


def test_removing_an_object(session, labels):
    session.paint(2, labels)
    session.paint(6, np.where(labels == 3, 3, 0).astype(np.uint8))
    run(session, 2, 'both')
    session.remove(3)
    assert session.names.keys() == {1, 2}
    assert session.painted == {2: {1, 2}, 6: frozenset()}  # the mask of frame 6 still says that 1 and 2 are absent
    assert not any((mask == 3).any() for mask in masks(session))
    assert np.array_equal(session.labels(2), np.where(labels == 3, 0, labels))
    session.remove(1)
    session.remove(2)
    assert not session.painted
    assert not session.masked()
    with pytest.raises(DataError, match='no object 2'):
        session.remove(2)
    assert session.add_object() == 1


def test_removing_an_object_leaves_others_where_nothing_is_painted(session, labels):
    session.paint(0, labels)
    run(session)
    before = masks(session)
    session.forget(0)
    session.remove(1)
    assert session.names.keys() == {2, 3}
    assert session.masked() == list(range(1, len(session)))
    for mask, old in zip(masks(session)[1:], before[1:], strict=True):
        assert np.array_equal(mask, np.where(old == 1, 0, old))


def test_wrong_labels(session, labels):
    with pytest.raises(ValueError, match='expected uint8'):
        session.paint(0, labels.astype(np.int64))
    with pytest.raises(ValueError, match='expected uint8'):
        session.paint(0, labels[1:])


def test_memory_does_not_grow_with_the_clip(small_network, labels, tmp_path, monkeypatch):
    """A clip that is four times as long needs no more memory for arrays; the memory frames are bounded, too."""
    monkeypatch.setattr('inference.stream.READ_AHEAD', 0)  # how far readers are ahead at the peak is chance
    peaks = []
    for times in (4, 16):
        frames = [tmp_path / f'{times}' / f'{number:03d}.png' for number in range(4 * times)]
        frames[0].parent.mkdir()
        for number, path in enumerate(frames):
            path.symlink_to(FRAMES[number % 4])
        folder = tmp_path / f'session{times}'
        session = Session(small_network, Clip.of_images(frames), folder, max_memory_frames=2, size=32)
        session.paint(0, labels)
        tracemalloc.start()
        for _ in session.propagate(0):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2 * labels.size


def test_overlay_shows_the_mask(session, labels):
    session.paint(0, labels)
    changed = (session.overlay(0) != session.read_image(0)).any(axis=-1)
    assert changed[labels > 0].mean() > 0.99
    assert not changed[cv2.dilate(labels, np.ones((3, 3))) == 0].any()
    session.close()
    assert not session.folder.exists()


def zipped(path: Path, entries: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


LIMITS = {'max_seconds': 60, 'max_bytes': 10**7}


def test_zip_of_images(tmp_path, small_network, caplog):
    entries = [(f'some/clip/{number}.png', path.read_bytes()) for number, path in enumerate(FRAMES)]
    extra = [('__MACOSX/some/._0.png', b'x'), ('some/readme.txt', b'x'), ('some/clip/', b'')]
    clip = import_clip(zipped(tmp_path / 'clip.zip', entries[::-1] + extra), tmp_path / 'in', **LIMITS)
    assert [path.name for path in clip.frames] == [f'{number}.png' for number in range(12)]
    assert [path.read_bytes() for path in clip.frames] == [path.read_bytes() for path in FRAMES]
    assert clip.time_base * clip.pts[-1] == Fraction(11, 25)
    assert Session(small_network, clip, tmp_path / 'in').shape == (110, 182)
    assert caplog.messages == [
        'clip.zip: left out entries other than .jpg .jpeg .png .bmp .webp .tif .tiff: readme.txt'
    ]


def test_zip_stays_in_its_folder(tmp_path):
    data = FRAMES[0].read_bytes()
    entries = [('../../a.png', data), ('/etc/b.png', data), ('c/../../d.png', data)]
    clip = import_clip(zipped(tmp_path / 'clip.zip', entries), tmp_path / 'in', **LIMITS)
    assert [path.name for path in clip.frames] == ['a.png', 'b.png', 'd.png']
    assert set(tree(tmp_path)) == {'clip.zip', 'in/frames/a.png', 'in/frames/b.png', 'in/frames/d.png'}


@pytest.mark.parametrize(
    ('entries', 'message'),
    [
        ([], 'no images'),
        ([('a/1.png', 'FRAME'), ('b/1.png', 'FRAME')], 'two frames are called 1.png'),
        ([('1.png', 'FRAME'), ('1.jpg', 'FRAME')], 'one file per frame'),
        ([('1.png', b'no image')], '1.png: expected an image'),
        ([('1.png', 'FRAME'), ('2.png', 'SMALL')], 'one size, found 1.png 182 x 110, 2.png 4 x 3'),
        ([('a\\1.png', 'FRAME')], 'expected the name'),
        ([(f'{number}.png', 'FRAME') for number in range(30)], 'longer than the 1 seconds'),
    ],
)
def test_zip_that_is_refused(tmp_path, entries, message):
    Image.new('RGB', (4, 3)).save(tmp_path / 'small.png')
    contents = {'FRAME': FRAMES[0].read_bytes(), 'SMALL': (tmp_path / 'small.png').read_bytes()}
    path = zipped(tmp_path / 'clip.zip', [(name, contents.get(content, content)) for name, content in entries])
    with pytest.raises(DataError, match=message):
        import_clip(path, tmp_path / 'in', max_seconds=1, max_bytes=10**7)


def test_size_bounds(tmp_path):
    with zipfile.ZipFile(tmp_path / 'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('1.png', bytes(5 * 10**6))
    with pytest.raises(LimitError, match='10 times the largest upload'):
        import_clip(tmp_path / 'bomb.zip', tmp_path / 'in', max_seconds=60, max_bytes=10**5)
    assert sum(map(len, tree(tmp_path / 'in').values())) < 3 * 10**6
    with pytest.raises(DataError, match='more than the 0 MB'):
        import_clip(tmp_path / 'bomb.zip', tmp_path / 'in2', max_seconds=60, max_bytes=100)
    (tmp_path / 'bad.zip').write_bytes(b'no zip')
    with pytest.raises(DataError, match='expected a zip'):
        import_clip(tmp_path / 'bad.zip', tmp_path / 'in3', **LIMITS)


def test_large_frames_are_refused_before_they_are_decoded(tmp_path):
    Image.new('1', (10000, 5000)).save(tmp_path / '1.png')
    path = zipped(tmp_path / 'clip.zip', [('1.png', (tmp_path / '1.png').read_bytes())])
    with pytest.raises(DataError, match='10000 x 5000 is more than'):
        import_clip(path, tmp_path / 'in', **LIMITS)


def test_video_and_back(tmp_path, small_network, clip, labels, monkeypatch):
    pytest.importorskip('av')
    from inference.video_file import VideoReader, VideoWriter

    times = [0, 1, 2, 5, 6, 7]
    with VideoWriter(
        tmp_path / 'clip.mp4',
        182,
        110,
        time_base=Fraction(1, 30),
        frame_rate=Fraction(30),
        pixel_aspect=Fraction(4, 3),
    ) as video:
        for image, pts in zip(clip, times, strict=False):
            video.write(image.permute(1, 2, 0).numpy(), pts)
    with pytest.raises(DataError, match='longer than the'):
        import_clip(tmp_path / 'clip.mp4', tmp_path / 'short', max_seconds=0.2, max_bytes=10**7)
    monkeypatch.setattr('inference.clip.STORE_FACTOR', 1)
    size = (tmp_path / 'clip.mp4').stat().st_size
    with pytest.raises(DataError, match='1 times the largest upload'):
        import_clip(tmp_path / 'clip.mp4', tmp_path / 'small', max_seconds=9, max_bytes=size)
    clip = import_clip(tmp_path / 'clip.mp4', tmp_path / 'in', **LIMITS)
    assert [pts * clip.time_base for pts in clip.pts] == [Fraction(time, 30) for time in times]
    session = Session(small_network, clip, tmp_path / 'in')
    session.paint(0, labels)
    run(session)
    session.write_overlay(tmp_path / 'overlay.mp4')
    with VideoReader(tmp_path / 'overlay.mp4') as video:
        shown = [(image, pts * video.time_base) for image, pts in video]
        assert video.pixel_aspect == Fraction(4, 3)
    assert [time for _, time in shown] == [Fraction(time, 30) for time in times]
    difference = np.abs(shown[0][0].astype(int) - session.overlay(0)).mean()
    assert difference < 8
    assert read_mask(session.folder / 'masks' / '00000.png').shape == session.shape
