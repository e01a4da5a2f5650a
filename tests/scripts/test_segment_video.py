"""scripts/segment_video.py on real folders and video files, against the core driven by hand."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.io import PALETTE, DataError, read_image, read_mask, write_mask
from dataset.mask_files import GivenMask
from inference import Ensemble, InferenceConfig, InferenceCore, continuing, ensemble, load_model, outputs
from inference.report import Report
from inference.sources import open_source
from inference.video_file import VideoReader, VideoWriter
from model import Network
from scripts import segment_video
from scripts.evaluate import evaluate
from scripts.segment_video import given_mask
from tests.conftest import FRAMES, GOLDEN, REPOSITORY, tree
from training import adapt
from util.cli import frame_rate
from util.errors import MissingPackageError, UserError

FIRST = GOLDEN / 'first_mask.png'
COUNT, H, W = 12, 110, 182


@pytest.fixture
def run(small_checkpoint, tmp_path, monkeypatch):
    """The script in this process: ``run('--input', ...) -> exit status``; output in tmp_path / 'out'."""

    def call(*args: object, output: Path = tmp_path / 'out') -> int:
        monkeypatch.setattr(
            sys,
            'argv',
            [
                'segment_video.py',
                '--output',
                str(output),
                '--model',
                str(small_checkpoint),
                '--size',
                '0',
                '--device',
                'cpu',
                '--num_threads',
                str(torch.get_num_threads()),
                *map(str, args),
            ],
        )
        return segment_video.main()

    return call


@pytest.fixture(scope='module')
def network(small_checkpoint) -> Network:
    """The network, made ready as the script does it: without folding batch norm, some pixels at edges would differ."""
    return load_model(small_checkpoint, device='cpu')


@pytest.fixture(scope='module')
def video(tmp_path_factory) -> Path:
    """The clip with a variable frame rate."""
    pytest.importorskip('av')
    path = tmp_path_factory.mktemp('video') / 'clip.mp4'
    with VideoWriter(path, W, H, time_base=Fraction(1, 1000), frame_rate=Fraction(25)) as writer:
        for number, frame in enumerate(FRAMES):
            writer.write(read_image(frame), 40 * number + 7 * (number % 3))
    return path


@pytest.fixture
def spied_cores(monkeypatch) -> list[InferenceCore]:
    """The cores that the script makes."""
    made = []

    class Spy(InferenceCore):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(ensemble, 'InferenceCore', Spy)
    return made


def by_hand(network, images: list[np.ndarray], masks: dict, **options) -> list[np.ndarray]:
    """Labels of every frame; ``masks``: frame -> what ``step`` takes after the image."""
    core = InferenceCore(network, **options)
    return [
        core.to_labels(core.step(torch.from_numpy(image).permute(2, 0, 1), *masks.get(number, ()))).numpy()
        for number, image in enumerate(images)
    ]


def written_masks(output: Path) -> list[np.ndarray]:
    return [read_mask(path) for path in sorted((output / 'masks').iterdir())]


def same(masks: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return len(masks) == len(others) and all(np.array_equal(*both) for both in zip(masks, others, strict=True))


def binary(path: Path, rows: slice, columns: slice, value: int = 255) -> np.ndarray:
    mask = np.zeros((H, W), np.uint8)
    mask[rows, columns] = value
    Image.fromarray(mask).save(path)
    return mask > 0


@pytest.mark.parametrize('name', ['report.json', 'report.png'])
def test_no_report_over_a_file_that_is_somebody_elses(run, tmp_path, name):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / name).write_text('mine')
    with pytest.raises(outputs.OutputError, match=name):
        run('--input', GOLDEN / 'clip', '--mask', FIRST, '--no_overlay', '--report', '--overwrite')
    assert (tmp_path / 'out' / name).read_text() == 'mine'


def test_a_report_says_how_sure_the_network_is(run, tmp_path, network):
    """The report has the confidence of each frame and object and begins with the least sure frame; a plot shows it."""
    flags = ('--input', GOLDEN / 'clip', '--mask', f'0={FIRST}', f'6={FIRST}', '--no_overlay', '--report')
    assert run(*flags) == 0
    found = json.loads((tmp_path / 'out' / 'report.json').read_text())
    core, first = InferenceCore(network), torch.from_numpy(read_mask(FIRST))
    expected = []
    for number, path in enumerate(FRAMES):
        image = torch.from_numpy(read_image(path)).permute(2, 0, 1)
        sure = core.confidence(core.step(image, first if number in (0, 6) else None))
        expected.append({str(label): round(value, 4) for label, value in sure.items()})
    assert [frame['name'] for frame in found['frames']] == [path.stem for path in FRAMES]
    assert [frame['confidence'] for frame in found['frames']] == expected
    worst = min(range(COUNT), key=lambda number: min(expected[number].values()))
    entry = found['first'][0]
    assert (entry['frame'], entry['name']) == (worst, FRAMES[worst].stem)
    assert entry['confidence'] == expected[worst][str(entry['object'])] == min(expected[worst].values())
    shown = [set(np.unique(mask)) - {0} for mask in written_masks(tmp_path / 'out')]
    gone = [(number, label) for number in range(1, COUNT) for label in sorted(shown[number - 1] - shown[number])]
    assert [(entry['frame'], entry['object']) for entry in found['vanished']] == gone
    with Image.open(tmp_path / 'out' / 'report.png') as picture:
        colours = {colour for _, colour in picture.convert('RGB').getcolors(100_000)}
    assert {tuple(PALETTE[label].tolist()) for label in (1, 2, 3)} <= colours
    assert run(*flags[:-1], '--overwrite') == 0
    assert not list((tmp_path / 'out').glob('report.*'))


def test_a_folder_gives_the_masks_of_the_core(run, tmp_path, network, capsys):
    assert run('--input', GOLDEN / 'clip', '--mask', FIRST, '--no_overlay') == 0
    out = tmp_path / 'out'
    assert [path.name for path in sorted((out / 'masks').iterdir())] == [f'{path.stem}.png' for path in FRAMES]
    first = torch.from_numpy(read_mask(FIRST))
    assert same(written_masks(out), by_hand(network, [read_image(path) for path in FRAMES], {0: (first,)}))
    with Image.open(out / 'masks' / '00000.png') as image:
        assert np.array_equal(np.reshape(image.getpalette(), (-1, 3)), PALETTE)
    assert sorted(path.name for path in out.iterdir()) == ['masks', 'settings.json']
    report = capsys.readouterr().out
    assert 'frames: 12' in report
    assert 'FPS' in report
    assert 'MiB' in report


def test_a_video_gives_masks_and_an_overlay_with_its_timestamps(run, tmp_path, video, network):
    assert run('--input', video, '--mask', FIRST) == 0
    out = tmp_path / 'out'
    images, pts = zip(*VideoReader(video), strict=True)
    assert sorted(tree(out / 'masks')) == [f'{number:05d}.png' for number in range(COUNT)]
    assert same(written_masks(out), by_hand(network, images, {0: (torch.from_numpy(read_mask(FIRST)),)}))
    overlay = VideoReader(out / 'overlay.mp4')
    shown, times = zip(*overlay, strict=True)
    assert [each * overlay.time_base for each in times] == [each * VideoReader(video).time_base for each in pts]
    inside = read_mask(FIRST) == 1
    tint = shown[0][inside].mean(axis=0) - images[0][inside].mean(axis=0)
    assert tint.argmax() == PALETTE[1].argmax()
    assert np.abs(shown[0][read_mask(FIRST) == 0].astype(int) - images[0][read_mask(FIRST) == 0]).mean() < 12


def test_black_files_of_an_object_are_no_annotation(run, tmp_path):
    """Some tools write a file for each object and frame, also where nothing was annotated."""
    for folder in ('plain', 'padded'):
        for label in '12':
            (tmp_path / folder / label).mkdir(parents=True)
        binary(tmp_path / folder / '1' / '00000.png', slice(10, 60), slice(10, 70))
        binary(tmp_path / folder / '2' / '00004.png', slice(50, 90), slice(60, 120))
    for frame in range(12):
        for label in (1, 2):
            path = tmp_path / 'padded' / str(label) / f'{frame:05d}.png'
            if not path.exists():
                binary(path, slice(0, 0), slice(0, 0))
    for folder in ('plain', 'padded'):
        flags = ('--input', GOLDEN / 'clip', '--mask', tmp_path / folder, '--no_overlay')
        assert run(*flags, output=tmp_path / f'{folder}_out') == 0
    plain, padded = (written_masks(tmp_path / f'{folder}_out') for folder in ('plain', 'padded'))
    assert same(padded, plain)
    assert all((plain[-1] == label).any() for label in (1, 2))


def test_a_mask_among_the_frames(run, tmp_path):
    shutil.copytree(GOLDEN / 'clip', tmp_path / 'frames')
    binary(tmp_path / 'frames' / 'first.png', slice(10, 60), slice(10, 70))
    with pytest.raises(DataError, match=r'first\.png: expected a mask, found one of the frames'):
        run('--input', tmp_path / 'frames', '--mask', tmp_path / 'frames' / 'first.png', '--no_overlay')


def test_binary_masks_and_masks_of_later_frames(run, tmp_path, network):
    cat = binary(tmp_path / 'cat.png', slice(10, 60), slice(10, 70))
    dog = binary(tmp_path / 'dog.png', slice(50, 90), slice(60, 120), value=3)
    bird = binary(tmp_path / 'bird.png', slice(5, 30), slice(130, 170))
    later = np.zeros((H, W), np.uint8)
    later[40:70, 20:60] = 1
    write_mask(tmp_path / 'later.png', later)
    assert (
        run(
            '--input',
            GOLDEN / 'clip',
            '--no_overlay',
            '--mask',
            f'2={tmp_path}/cat.png,{tmp_path}/dog.png',
            f'5:7={tmp_path}/bird.png',
            '--mask',
            f'8={tmp_path}/later.png',
        )
        == 0
    )
    first = torch.from_numpy(np.where(dog, 2, cat).astype(np.uint8))
    masks = {2: (first, [1, 2]), 5: (torch.from_numpy(7 * bird.astype(np.uint8)), [7]), 8: (torch.from_numpy(later),)}
    written = written_masks(tmp_path / 'out')
    assert same(written, by_hand(network, [read_image(path) for path in FRAMES], masks))
    assert not written[1].any()
    assert np.array_equal(written[2], first)
    assert (written[5][bird] == 7).all()


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('a.png', GivenMask((Path('a.png'),))),
        ('12=a.png', GivenMask((Path('a.png'),), 12)),
        ('12:3=a.png', GivenMask((Path('a.png'),), 12, 3)),
        ('a.png,b.png', GivenMask((Path('a.png'), Path('b.png')))),
        ('7:254=a.png,b.png', GivenMask((Path('a.png'), Path('b.png')), 7, 254)),
        ('./1=a.png', GivenMask((Path('1=a.png'),))),
    ],
)
def test_what_a_mask_argument_means(text, expected):
    assert given_mask(text) == expected


def test_commas_in_names(tmp_path):
    shutil.copy(FIRST, tmp_path / 'a,b.png')
    assert given_mask(f'3={tmp_path}/a,b.png').files == (tmp_path / 'a,b.png',)


def test_names_of_many_masks():
    """Together they are too long for the name of a file."""
    names = [f'{"x" * 90}{label}.png' for label in range(50)]
    assert given_mask(f'0={",".join(names)}').files == tuple(map(Path, names))


@pytest.mark.parametrize(
    ('text', 'rate'),
    [
        ('29.97002997', Fraction(30000, 1001)),
        ('23.976023976', Fraction(24000, 1001)),
        ('59.94005994', Fraction(60000, 1001)),
        ('30000/1001', Fraction(30000, 1001)),
        ('12.5', Fraction(25, 2)),
        ('1/1000', Fraction(1, 1000)),
    ],
)
def test_frame_rates(text, rate):
    assert frame_rate(text) == rate


@pytest.mark.parametrize('text', ['0', '-25', '25/0', 'nan', 'inf', '1e-30', '1e999999999', '1001', 'x'])
def test_frame_rates_of_no_video(text, capsys):
    with pytest.raises(SystemExit):
        segment_video.parse(['--input', 'x', '--mask', 'y', '--output', 'z', f'--fps={text}'])
    assert f'argument --fps: {"invalid" if text == "x" else "expected from 1/1000 to 1000"}' in capsys.readouterr().err


def test_a_frame_rate_with_many_digits(tmp_path):
    pytest.importorskip('av')
    rate = frame_rate('29.97002997')
    with VideoWriter(tmp_path / 'a.mp4', 16, 16, time_base=1 / rate, frame_rate=rate) as writer:
        writer.write(np.zeros((16, 16, 3), np.uint8), 0)
    assert VideoReader(tmp_path / 'a.mp4').frame_rate == rate


def test_wrong_masks_are_errors_before_anything_is_computed(run, tmp_path, caplog):
    clip = GOLDEN / 'clip'
    binary(tmp_path / 'empty.png', slice(0, 0), slice(0, 0))
    Image.fromarray(np.zeros((50, 50), np.uint8)).save(tmp_path / 'square.png')
    for masks, message in (
        (('12=' + str(FIRST),), 'expected a frame from 0 to 11'),
        ((f'0:255={FIRST},{FIRST}',), 'expected labels from 1 to 255'),
        ((tmp_path / 'empty.png',), 'shows an object'),
        ((tmp_path / 'none.png',), 'none.png'),
        ((FIRST, f'0={FIRST}'), 'expected one mask for frame 0'),
        ((tmp_path / 'square.png',), 'aspect'),
    ):
        with pytest.raises(DataError, match=message):
            run('--input', clip, '--mask', *masks)
    with pytest.raises(SystemExit):
        run('--input', clip)
    assert not (tmp_path / 'out').exists()
    Image.open(FIRST).resize((2 * W, 2 * H), Image.Resampling.NEAREST).save(tmp_path / 'large.png')
    assert run('--input', clip, '--no_overlay', '--mask', tmp_path / 'empty.png', f'1={tmp_path}/large.png') == 0
    assert 'shows no object' in caplog.text
    assert np.array_equal(written_masks(tmp_path / 'out')[1], read_mask(FIRST))


@pytest.mark.parametrize('aspect', [Fraction(16, 11), Fraction(8, 9)])
def test_pixels_that_are_no_squares(run, tmp_path, aspect):
    """The overlay has pixels of the same shape, and a mask may have the size at which a player shows the video."""
    pytest.importorskip('av')
    path, shown = tmp_path / 'dv.mp4', round(W * aspect)
    with VideoWriter(path, W, H, time_base=1 / Fraction(25), frame_rate=Fraction(25), pixel_aspect=aspect) as writer:
        for number, frame in enumerate(FRAMES[:2]):
            writer.write(read_image(frame), number)
    Image.open(FIRST).resize((shown, H), Image.Resampling.NEAREST).save(tmp_path / 'shown.png')
    assert run('--input', path, '--mask', tmp_path / 'shown.png') == 0
    assert VideoReader(tmp_path / 'out' / 'overlay.mp4').pixel_aspect == aspect
    assert np.mean(written_masks(tmp_path / 'out')[0] != read_mask(FIRST)) < 0.02
    Image.open(FIRST).resize((shown, H + 20), Image.Resampling.NEAREST).save(tmp_path / 'other.png')
    with pytest.raises(DataError, match=rf'aspect ratio \({W} x {H}\), or as it is shown \({shown} x {H}\), found'):
        run('--input', path, '--mask', tmp_path / 'other.png', '--overwrite')


MATCHED = {
    # arguments of --mask -> frames that have a mask
    'a file named like a frame': (['masks/00004.png'], [4]),
    'another file': (['masks/first.png'], [0]),
    'a folder': (['named'], [2, 4]),
    'a pattern': (['named/*.png'], [2, 4]),
    'files': (['named/00002.png', 'named/00004.png'], [2, 4]),
    'a number wins': (['1=masks/00004.png'], [1]),
    'commas': (['named/00002.png,named/00004.png'], [0]),
    'a folder of folders of masks': (['objects'], [2, 4]),
}


@pytest.mark.parametrize('how', MATCHED)
def test_masks_belong_to_the_frames_of_their_names(run, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    masks, frames = MATCHED[how]
    for name in ('masks/00004', 'masks/first', 'named/00002', 'named/00004', 'objects/1/00002', 'objects/5/00004'):
        path = tmp_path / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        binary(path, slice(10, 60), slice(10, 70))
    clip = tmp_path / 'clip'
    clip.mkdir()
    for frame in FRAMES[:6]:
        shutil.copy(frame, clip)
    assert run('--input', clip, '--mask', *masks, '--no_overlay', '--size', 32) == 0
    given = json.loads((tmp_path / 'out' / 'settings.json').read_text())['mask']
    assert [int(frame) for frame in given] == frames
    written = written_masks(tmp_path / 'out')
    assert not any(mask.any() for mask in written[: frames[0]])
    assert written[frames[0]].any()
    if 'folders' in how:
        assert 5 in written[4]


def test_scoring_knows_what_the_network_was_given(run, tmp_path):
    for number in (0, 5):
        image = Image.open(FIRST)
        (tmp_path / 'root' / 'Annotations').mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / 'root' / 'Annotations' / f'{number:05d}.png')
    masks = [f'{number}={FIRST}' for number in (0, 5)]
    assert run('--input', GOLDEN / 'clip', '--no_overlay', '--mask', *masks) == 0
    with pytest.raises(DataError, match='2 of them given to the network'):
        evaluate(tmp_path / 'out' / 'masks', tmp_path / 'root', dataset='folder')


def test_a_mask_beyond_the_end_of_a_video_is_reported_and_the_rest_is_there(run, tmp_path, video, caplog):
    assert run('--input', video, '--mask', FIRST, f'40={FIRST}') == 1
    assert 'these frames were not used: 40' in caplog.text
    assert len(written_masks(tmp_path / 'out')) == COUNT


def test_cutouts_and_strip(run, tmp_path, spied_cores):
    assert (
        run(
            '--input',
            GOLDEN / 'clip',
            '--mask',
            FIRST,
            '--no_overlay',
            '--cutouts',
            '--strip',
            3,
            '--max_memory_frames',
            0,
        )
        == 0
    )
    assert spied_cores[0].memory.eviction is None
    out = tmp_path / 'out'
    for number, labels in enumerate(written_masks(out)):
        image = read_image(FRAMES[number])
        for label in (1, 2, 3):
            cutout = np.asarray(Image.open(out / 'cutouts' / str(label) / f'{number:05d}.png'))
            assert np.array_equal(cutout[..., 3] == 255, labels == label)
            assert np.array_equal(cutout[..., :3], image * (labels == label)[..., None])
    width = round(W * outputs.STRIP_HEIGHT / H)
    assert read_image(out / 'strip.png').shape == (
        outputs.STRIP_HEIGHT,
        3 * width + 2 * outputs.STRIP_GAP,
        3,
    )


def test_a_strip_of_any_length_is_bounded_and_even(tmp_path):
    strip = outputs.Strip(tmp_path / 'strip.png', 5)
    for number in range(10_000):
        asked = number - number % 10  # the thread that adds pictures may be behind the one that asks
        if number == asked:
            every = strip.every
        if number % every == 0:
            strip.add(number, np.full((24, 24, 3), number // 40, np.uint8))
        assert len(strip.kept) <= 40
    strip.write()
    sizes = outputs.STRIP_HEIGHT + outputs.STRIP_GAP
    shown = 40 * read_image(tmp_path / 'strip.png')[0, sizes // 2 :: sizes, 0].astype(int)
    assert shown[0] == 0
    assert shown[-1] > 9000
    assert np.ptp(np.diff(shown)) <= 600


def test_the_memory_is_bounded(run, spied_cores):
    run('--input', GOLDEN / 'clip', '--mask', FIRST, '--no_overlay', '--mem_every', 1, '--max_memory_frames', 3)
    run('--input', GOLDEN / 'clip', '--mask', FIRST, '--no_overlay', '--mem_every', 1, '--overwrite')
    assert [core.memory.eviction.max_frames for core in spied_cores] == [3, 64]
    assert [core.memory.permanent for core in spied_cores] == [3, 11]  # the last frame is not memorised


def interrupt_after(monkeypatch, frames: int, times: int) -> None:
    """Press Ctrl-C ``times`` times while the frame after the first ``frames`` ones is computed."""

    class Interrupted(InferenceCore):
        def step(self, *args, **options):
            if self.schedule.time == frames - 1:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            return super().step(*args, **options)

    monkeypatch.setattr(ensemble, 'InferenceCore', Interrupted)


def test_a_report_names_the_frames_in_which_an_object_vanishes(tmp_path):
    report = Report(tmp_path)
    shown = {0: [1, 2], 1: [1], 2: [1], 3: [1, 2], 4: []}
    for number in (3, 0, 1, 4, 2):  # in whichever order they come
        labels = torch.zeros(10, 10, dtype=torch.uint8)
        for label in shown[number]:
            labels[label] = label
        report.add(number, f'{number:05d}', [1, 2], torch.tensor([0.9, 0.8]), labels)
    report.write()
    vanished = json.loads((tmp_path / 'report.json').read_text())['vanished']
    assert [(entry['frame'], entry['object']) for entry in vanished] == [(1, 2), (4, 1), (4, 2)]


def test_a_report_knows_what_was_given_and_where_the_directions_turn(run, tmp_path, video):
    """An object has not vanished where it is not known yet, and masks that were given are not frames to look at."""
    flags = ('--input', video, '--mask', f'5={FIRST}', '--no_overlay', '--report', '--overwrite')
    for direction, known in {'forward': range(5, COUNT), 'backward': range(6), 'both': range(COUNT)}.items():
        assert run(*flags, '--direction', direction) == 0
        found = json.loads((tmp_path / 'out' / 'report.json').read_text())
        assert [frame['frame'] for frame in found['frames'] if frame['confidence']] == [*known]
        assert found['first']
        assert not [entry for entry in found['first'] if entry['frame'] == 5]
        shown = [set(np.unique(mask)) - {0} for mask in written_masks(tmp_path / 'out')]
        gone = [
            (number, label)
            for number in known
            if number != 5
            for label in sorted(shown[number - 1 if number > 5 else number + 1] - shown[number])
        ]
        assert [(entry['frame'], entry['object']) for entry in found['vanished']] == gone


def test_a_report_names_what_vanishes_backwards(tmp_path):
    report = Report(tmp_path, given={3: [1], 1: [2]}, turn=3)
    shown = {0: [2], 1: [2], 2: [1], 3: [1], 4: [1], 5: []}
    for number, visible in shown.items():
        labels = torch.zeros(10, 10, dtype=torch.uint8)
        for label in visible:
            labels[label] = label
        objects = [1, 2] if number < 2 else [1]
        report.add(number, f'{number:05d}', objects, torch.tensor([0.9, 0.8][: len(objects)]), labels)
    report.write()
    found = json.loads((tmp_path / 'report.json').read_text())
    assert [(entry['frame'], entry['object']) for entry in found['vanished']] == [(1, 1), (5, 1)]
    assert {(entry['frame'], entry['object']) for entry in found['first']} <= {(0, 2), (1, 1), (2, 1), (4, 1), (5, 1)}


def test_both_directions_say_how_many_frames_have_masks(run, tmp_path, video, monkeypatch, capsys, caplog):
    flags = ('--input', video, '--mask', f'4={FIRST}', f'8={FIRST}', '--direction', 'both', '--no_overlay')
    # This is in the backward pass from frame 8, whose results wait for the forward pass.
    interrupt_after(monkeypatch, 3, times=1)
    assert run(*flags) == 130
    assert 'interrupted: 0 frames are complete' in caplog.text
    interrupt_after(monkeypatch, 7, times=1)
    assert run(*flags) == 130
    assert f'interrupted: {len(written_masks(tmp_path / "out"))} frames are complete' in caplog.text
    interrupt_after(monkeypatch, 1000, times=0)
    assert run(*flags) == 0
    assert 'frames: 12\n' in capsys.readouterr().out


@pytest.mark.parametrize('direction', ['backward', 'both'])
def test_a_mask_beyond_the_end_is_refused_where_the_end_is_known(run, tmp_path, video, direction):
    with pytest.raises(DataError, match=r'has 12 frames \(0 to 11\), found a mask of frame 40'):
        run('--input', video, '--mask', FIRST, f'40={FIRST}', '--direction', direction)
    assert not (tmp_path / 'out').exists()


def test_ctrl_c_ends_after_the_frame_with_everything_whole(run, tmp_path, video, monkeypatch, caplog):
    interrupt_after(monkeypatch, 5, times=1)
    handler = signal.getsignal(signal.SIGINT)
    assert run('--input', video, '--mask', FIRST, '--strip', 2, '--report') == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(written_masks(tmp_path / 'out')) == 6
    assert len(list(VideoReader(tmp_path / 'out' / 'overlay.mp4'))) == 6
    assert (tmp_path / 'out' / 'strip.png').exists()
    assert len(json.loads((tmp_path / 'out' / 'report.json').read_text())['frames']) == 6
    assert 'interrupted: 6 frames are complete' in caplog.text


def test_ctrl_c_twice_leaves_no_half_file(run, tmp_path, video, monkeypatch):
    interrupt_after(monkeypatch, 5, times=2)
    with pytest.raises(KeyboardInterrupt):
        run('--input', video, '--mask', FIRST)
    files = tree(tmp_path / 'out')
    assert not [name for name in files if 'overlay' in name or name.endswith('.part')]
    assert all(mask.shape == (H, W) for mask in written_masks(tmp_path / 'out'))


def test_an_unreadable_frame_ends_the_run_with_what_was_before_it(run, tmp_path, caplog):
    pytest.importorskip('av')
    shutil.copytree(GOLDEN / 'clip', tmp_path / 'clip')
    (tmp_path / 'clip' / FRAMES[7].name).write_bytes(b'no image')
    assert run('--input', tmp_path / 'clip', '--mask', FIRST, f'9={FIRST}', '--fps', '12.5') == 1
    assert f'error at frame 7: {tmp_path}/clip/{FRAMES[7].name}' in caplog.text
    assert len(written_masks(tmp_path / 'out')) == 7
    reader = VideoReader(tmp_path / 'out' / 'overlay.mp4')
    assert [pts * reader.time_base for _, pts in reader] == [Fraction(2 * number, 25) for number in range(7)]


def test_a_second_run_refuses_or_replaces(run, tmp_path):
    out, clip = tmp_path / 'out', GOLDEN / 'clip'
    command = ('--input', clip, '--mask', FIRST, '--no_overlay')
    run(*command, '--cutouts', '--strip', 2)
    before = tree(out)
    with pytest.raises(DataError, match='overwrite them'):
        run(*command)
    with pytest.raises(DataError, match='would also write there'):
        run('--input', clip, '--mask', out / 'masks' / '00000.png', '--no_overlay', '--overwrite')
    with pytest.raises(Exception, match='no such checkpoint'):
        run(*command, '--overwrite', '--model', tmp_path / 'none.pth')
    assert tree(out) == before
    assert run('--input', clip, '--mask', f'6={FIRST}', '--no_overlay', '--overwrite') == 0
    assert not list(out.rglob('cutouts/*/*.png'))
    assert not (out / 'strip.png').exists()
    assert not written_masks(out)[0].any()


def test_two_runs_at_once(run, tmp_path, monkeypatch):
    """The second is refused before it loads a network, whatever the first one does."""
    out, command = tmp_path / 'out', ('--input', GOLDEN / 'clip', '--mask', FIRST, '--no_overlay', '--size', 32)
    refused = []

    def refuse_another(function, name):
        def during(*args):
            with monkeypatch.context() as patch:
                patch.setattr(segment_video, 'load_networks', lambda args: pytest.fail('a network is loaded'))
                with pytest.raises(UserError, match='out: another run is writing to it'):
                    run(*command, '--overwrite')
            refused.append(name)
            return function(*args)

        return during

    for module, name in (
        (segment_video, 'load_networks'),
        (segment_video, 'claim_output'),
        (continuing, 'redraw'),
        (segment_video, 'report_unused'),
    ):
        monkeypatch.setattr(module, name, refuse_another(getattr(module, name), name))
    assert run(*command) == 0
    assert refused == ['load_networks', 'claim_output', 'redraw', 'report_unused']
    assert len(written_masks(out)) == COUNT
    assert run(*command, '--overwrite') == 0


def test_a_file_in_place_of_the_output_folder(run, tmp_path):
    (tmp_path / 'out').write_bytes(b'mine')
    with pytest.raises(OSError, match=rf'out: cannot be written \({tmp_path}/out has to be a folder\)'):
        run('--input', GOLDEN / 'clip', '--mask', FIRST, '--no_overlay')
    assert tree(tmp_path) == {'out': b'mine'}


def test_files_of_others_are_never_deleted(run, tmp_path):
    (tmp_path / 'mine' / 'masks').mkdir(parents=True)
    shutil.copy(FIRST, tmp_path / 'mine' / 'masks')
    with pytest.raises(DataError, match='Nothing is deleted'):
        run('--input', GOLDEN / 'clip', '--mask', FIRST, '--no_overlay', '--overwrite', output=tmp_path / 'mine')
    assert list(tree(tmp_path / 'mine')) == ['masks/first_mask.png']


def test_the_overlay_never_replaces_the_video(run, video):
    before = video.read_bytes()
    with pytest.raises(DataError, match='would also write there'):
        run('--input', video, '--mask', FIRST, '--overlay', video, '--overwrite')
    assert video.read_bytes() == before


@pytest.mark.parametrize('name', ['clip', 'masks', 'link'])
def test_no_picture_comes_between_frames_or_masks(run, tmp_path, name):
    shutil.copytree(GOLDEN / 'clip', tmp_path / 'clip')
    (tmp_path / 'masks').mkdir()
    shutil.copy(FIRST, tmp_path / 'masks' / '00000.png')
    (tmp_path / 'link').symlink_to(tmp_path / 'clip')
    before = tree(tmp_path)
    command = ('--input', tmp_path / 'clip', '--mask', tmp_path / 'masks', '--strip', 2, '--no_overlay')
    with pytest.raises(DataError, match='would also write there'):
        run(*command, output=tmp_path / name)
    assert tree(tmp_path) == before
    # A single mask may lie in the output folder.
    command = ('--input', tmp_path / 'clip', '--mask', tmp_path / 'masks' / '00000.png', '--size', 32, '--no_overlay')
    assert run(*command, output=tmp_path / 'masks') == 0


def test_inputs_that_are_not_there(run, tmp_path):
    (tmp_path / 'empty').mkdir()
    for name, message in (
        (tmp_path / 'none.mp4', 'no such'),
        (tmp_path / 'empty', 'expected images'),
        ('camera:97', 'no camera'),
    ):
        with pytest.raises(DataError, match=message):
            run('--input', name, '--mask', FIRST)


def test_images_of_another_size_are_named(run, tmp_path, caplog):
    shutil.copytree(GOLDEN / 'clip', tmp_path / 'clip')
    Image.open(FRAMES[3]).resize((W + 2, H)).save(tmp_path / 'clip' / FRAMES[3].name)
    assert run('--input', tmp_path / 'clip', '--mask', FIRST, '--no_overlay') == 1
    assert f'{FRAMES[3].name}: expected the size of the first image' in caplog.text


def test_a_camera(run, tmp_path, video):
    """A video file stands in for the camera, since OpenCV opens it like one."""
    assert run('--input', f'camera:{video}', '--mask', FIRST) == 0
    assert len(written_masks(tmp_path / 'out')) == COUNT - 1  # the first picture is only read for its size
    assert len(list(VideoReader(tmp_path / 'out' / 'overlay.mp4'))) == COUNT - 1


def test_without_av_there_are_masks_but_no_video(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, 'av', None)
    assert run('--input', GOLDEN / 'clip', '--mask', FIRST) == 0
    assert 'no overlay' in caplog.text
    assert 'requirements-extras.txt' in caplog.text
    assert len(written_masks(tmp_path / 'out')) == COUNT
    for arguments in (
        ('--input', GOLDEN / 'clip', '--overlay', tmp_path / 'a.mp4', '--overwrite'),
        ('--input', FIRST),
    ):
        with pytest.raises(MissingPackageError, match='requirements-extras'):
            run(*arguments, '--mask', FIRST)


def test_errors_are_one_line(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            REPOSITORY / 'scripts' / 'segment_video.py',
            '--input',
            tmp_path / 'none.mp4',
            '--mask',
            FIRST,
            '--output',
            tmp_path / 'out',
        ],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != 'STCN_TRACEBACK'},
    )
    assert done.returncode == 1
    assert done.stderr.startswith('error: ')
    assert len(done.stderr.splitlines()) == 1


def test_folders_of_before_are_replaced(run, tmp_path):
    """Such folders have segment_video.json in place of settings.json."""
    command = ('--input', GOLDEN / 'clip', '--mask', FIRST, '--no_overlay')
    run(*command)
    expected = tree(tmp_path / 'out')
    (tmp_path / 'out' / 'settings.json').rename(tmp_path / 'out' / 'segment_video.json')
    with pytest.raises(DataError, match=r'has results already .*overwrite them or choose another place'):
        run(*command)
    assert run(*command, '--overwrite') == 0
    assert tree(tmp_path / 'out') == expected


def test_several_networks_sizes_and_flips(run, tmp_path, video, small_checkpoint):
    """The masks of a video file equal those of an ensemble that is called frame by frame."""
    config = InferenceConfig(size=(32, 48), kernel_sigma=(None, 7), flip=True, max_memory_frames=64)
    flags = ('--model', small_checkpoint, small_checkpoint, '--size', 32, 48, '--kernel_sigma', 0, 7, '--flip')
    assert run('--input', video, '--mask', FIRST, '--no_overlay', *flags) == 0
    core = Ensemble.of([load_model(small_checkpoint, device='cpu')] * 2, config)
    mask, expected = torch.from_numpy(read_mask(FIRST)), []
    for image, _ in VideoReader(video):
        prob, mask = core.step(torch.from_numpy(image).permute(2, 0, 1), mask), None
        expected.append(core.to_labels(prob).numpy())
    assert same(written_masks(tmp_path / 'out'), expected)


def same_video(path: Path, other: Path) -> bool:
    """Whether two videos are nearly the same. On a busy machine, x264 does not encode frames equally twice."""
    (images, times), (others, expected) = (zip(*VideoReader(each), strict=True) for each in (path, other))
    pairs = zip(images, others, strict=True)
    return times == expected and all(np.abs(np.subtract(*pair, dtype=int)).mean() < 2 for pair in pairs)


CONTINUED = {
    # flags, and the frames of all passes at which the run is interrupted
    'forward': ((), [1, 5, 9]),
    'a bounded memory': (('--mem_every', 1, '--max_memory_frames', 3), [8, 11]),
    'a temporary frame': (('--include_last', '--mem_every', 3), [3, 5]),
    'an ensemble': (('--size', 32, 48, '--flip'), [4]),
    'backward': (('--direction', 'backward'), [7]),
    'both': (('--direction', 'both'), [2, 6, 9, 11, 18]),  # the backward pass has 9 frames
}


@pytest.mark.parametrize(('name', 'times'), [*((name, 2) for name in CONTINUED), ('both', 1)])
def test_a_run_goes_on_where_it_was_interrupted(run, tmp_path, video, monkeypatch, name, times):
    """After one Ctrl-C or two, the continued run has the same results as one without interruption."""
    flags, interruptions = CONTINUED[name]
    pending, begun, step = list(interruptions), [], Ensemble.step

    def interrupted(self, *args, **options):
        begun.append(self.schedule.time + 1)
        if pending and len(begun) == pending[0] + (times - 1) * (len(interruptions) - len(pending)):
            pending.pop(0)
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return step(self, *args, **options)

    monkeypatch.setattr(continuing, 'SAVE_SECONDS', 0)
    monkeypatch.setattr(continuing, 'SHARE', 0)
    later = GOLDEN / 'appearing' / '00004.png'
    pictures = ('--strip', 3, '--report')
    command = ('--input', video, '--mask', f'2={FIRST}', f'8={later}', '--size', 48, *pictures, *flags)
    whole, out = tmp_path / 'whole', tmp_path / 'out'
    assert run(*command, output=whole) == 0
    monkeypatch.setattr(Ensemble, 'step', interrupted)
    for _ in interruptions:
        with nullcontext() if times == 1 else pytest.raises(KeyboardInterrupt):
            assert run(*command) == 130
        assert (out / '.unfinished').is_dir()
    with pytest.raises(DataError, match='holds masks of other settings'):
        run(*command, '--top', 7)
    assert run(*command) == 0
    # A frame that the second Ctrl-C takes away is computed again, and no other one.
    assert len(begun) == (19 if name == 'both' else COUNT) + (times - 1) * len(interruptions)
    assert same_video(out / 'overlay.mp4', whole / 'overlay.mp4')
    found, expected = tree(out), tree(whole)
    assert found.keys() == expected.keys()
    assert {file for file in found if found[file] != expected[file]} <= {'overlay.mp4'}
    with pytest.raises(DataError, match='has results already'):
        run(*command)


@pytest.fixture
def adapting(monkeypatch) -> list[int]:
    """Makes adapting fast: a second is one iteration on a small clip, which changes the weights much.

    Returns a list with the number of objects in each clip so far.
    """
    counter, clips, loss = itertools.count(), [], adapt.clip_loss_of
    monkeypatch.setattr(time, 'process_time', lambda: float(next(counter)))
    monkeypatch.setattr(adapt, 'CROP_SIZE', 64)
    monkeypatch.setattr(adapt, 'LEARNING_RATE', 1e-2)

    def noted(network, sample):
        clips.append(int(sample['selector'].sum()))
        return loss(network, sample)

    monkeypatch.setattr(adapt, 'clip_loss_of', noted)
    return clips


LATER = GOLDEN / 'appearing' / '00004.png'  # object 5 alone
ADAPT = ('--mask', f'1={FIRST}', f'8={LATER}', '--size', 48, '--no_overlay')


def test_a_network_adapts_to_the_frames_that_have_a_mask(run, tmp_path, video, small_checkpoint, adapting):
    before = small_checkpoint.read_bytes()
    flags = ('--input', video, *ADAPT, '--direction', 'both')
    assert run(*flags, '--adapt', 6, output=tmp_path / 'out') == 0
    assert len(adapting) == 5
    assert set(adapting) == {1, 2}  # objects of the later mask, and of the first one
    assert small_checkpoint.read_bytes() == before
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'masks', 'settings.json', 'adapted.pth'}
    assert json.loads((tmp_path / 'out' / 'settings.json').read_text())['adapt'] == 6
    # The masks are those of the adapted network, which is a checkpoint like others.
    assert run(*flags, '--model', tmp_path / 'out' / 'adapted.pth', output=tmp_path / 'expected') == 0
    assert run(*flags, output=tmp_path / 'without') == 0
    adapted, expected, without = (tree(tmp_path / name / 'masks') for name in ('out', 'expected', 'without'))
    assert adapted == expected
    assert sum(adapted[name] != without[name] for name in adapted) > COUNT / 2
    with pytest.raises(DataError, match='has results already'):
        run(*flags, '--adapt', 6)
    with pytest.raises(DataError, match='would also write there'):
        run(*flags, '--model', tmp_path / 'out' / 'adapted.pth', '--overwrite')
    assert run(*flags, '--overwrite') == 0
    assert not (tmp_path / 'out' / 'adapted.pth').exists()


def test_a_run_that_is_killed_while_its_network_adapts_leaves_nothing_of_it(run, tmp_path, adapting, monkeypatch):
    flags = ('--input', GOLDEN / 'clip', *ADAPT, '--adapt', 6)
    loss = adapt.clip_loss_of

    def killed(network, sample):
        if len(adapting) == 2:
            raise KeyboardInterrupt
        return loss(network, sample)

    def killed_while_writing(content, path):
        Path(path).write_bytes(b'half')
        raise KeyboardInterrupt

    for module, name, function in ((adapt, 'clip_loss_of', killed), (torch, 'save', killed_while_writing)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, function)
            with pytest.raises(KeyboardInterrupt):
                run(*flags)
        assert list(tree(tmp_path / 'out')) == ['settings.json']
    adapting.clear()
    assert run(*flags) == 0
    assert len(adapting) == 5


def test_a_continued_run_has_the_same_adapted_network(run, tmp_path, adapting, monkeypatch):
    monkeypatch.setattr(continuing, 'SAVE_SECONDS', 0)
    monkeypatch.setattr(continuing, 'SHARE', 0)
    out, whole = tmp_path / 'out', tmp_path / 'whole'
    flags = ('--input', GOLDEN / 'clip', *ADAPT, '--direction', 'both')
    interrupt_after(monkeypatch, 6, times=1)
    assert run(*flags, '--adapt', 6) == 130
    interrupt_after(monkeypatch, 1000, times=0)
    assert len(adapting) == 5
    for other, message in ((('--adapt', 7), 'adapt was 6, is 7'), ((), 'adapt was 6, is None')):
        with pytest.raises(DataError, match=f'holds masks of other settings .*{message}'):
            run(*flags, *other)
    weights = (out / 'adapted.pth').rename(tmp_path / 'adapted.pth')
    with pytest.raises(DataError, match='expected the adapted network of an unfinished run, found none; overwrite'):
        run(*flags, '--adapt', 6)
    shutil.copy(weights, out / 'adapted.pth')
    # A run that found this network before its first frame, and that nothing interrupts.
    (whole / '.unfinished').mkdir(parents=True)
    for path in (weights, out / 'settings.json'):
        shutil.copy(path, whole)
    for output in (whole, out):
        assert run(*flags, '--adapt', 6, output=output) == 0
    assert len(adapting) == 5
    assert tree(out) == tree(whole)
    assert len(written_masks(out)) == COUNT


def test_what_cannot_be_adapted_is_refused(run, tmp_path, video, small_checkpoint):
    with pytest.raises(UserError, match='adapting needs the frames before the segmentation starts'):
        run('--input', f'camera:{video}', '--mask', FIRST, '--adapt')
    with pytest.raises(UserError, match='expected one network to adapt, found 2'):
        run('--input', video, '--mask', FIRST, '--adapt', '--model', small_checkpoint, small_checkpoint)
    assert not (tmp_path / 'out').exists()


def test_annotated_frames_of_a_folder_and_of_a_video(video):
    for name, beyond in ((GOLDEN / 'clip', ()), (video, (40,))):
        source = open_source(str(name), fps=Fraction(25))
        source.annotate([GivenMask((FIRST,), frame=frame) for frame in (1, 3, 4, 7, 9, *beyond)])
        images = [frame.read().image for frame in itertools.islice(source, COUNT)]
        for limit, numbers in ((6, [1, 3, 4, 7, 9]), (3, [1, 4, 9]), (1, [1])):
            found = list(source.annotated_frames(limit))
            assert [next(n for n in range(COUNT) if np.array_equal(images[n], image)) for image, _ in found] == numbers
            assert all(np.array_equal(mask, read_mask(FIRST)) for _, mask in found)


def test_masks_that_are_gone_are_missed(run, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 5, times=1)
    command = ('--input', GOLDEN / 'clip', '--mask', FIRST, '--no_overlay', '--size', 32)
    assert run(*command) == 130
    (tmp_path / 'out' / 'masks' / '00003.png').unlink()
    with pytest.raises(DataError, match=r'missing: .*00003.png; overwrite them or choose another place'):
        run(*command)
    interrupt_after(monkeypatch, 1000, times=0)
    assert run(*command, '--overwrite') == 0
    assert len(written_masks(tmp_path / 'out')) == COUNT
    assert not (tmp_path / 'out' / '.unfinished').exists()


@pytest.mark.parametrize('name', ['mask.png', 'clip.mp4'])
def test_a_file_that_changed_since_the_run_was_interrupted(run, tmp_path, video, monkeypatch, caplog, name):
    caplog.set_level('INFO')
    for path, copied in ((FIRST, 'mask.png'), (video, 'clip.mp4')):
        shutil.copy(path, tmp_path / copied)
    command = ('--input', tmp_path / 'clip.mp4', '--mask', tmp_path / 'mask.png', '--no_overlay', '--size', 32)
    interrupt_after(monkeypatch, 2, times=1)
    assert run(*command) == 130
    interrupt_after(monkeypatch, 1000, times=0)
    before = tree(tmp_path / 'out')
    if name == 'mask.png':
        write_mask(tmp_path / name, np.roll(read_mask(FIRST), 5, axis=0))
    else:
        os.utime(tmp_path / name, ns=(0, 0))
    with pytest.raises(
        UserError, match=rf'other settings \(changed since then: {tmp_path}/{name}\); overwrite'
    ) as error:
        run(*command)
    assert error.value.options == ('overwrite', 'output')
    assert tree(tmp_path / 'out') == before
    # The settings of an earlier version do not tell what the files were.
    record = tmp_path / 'out' / 'settings.json'
    settings = json.loads(record.read_text())
    del settings['files']
    record.write_text(json.dumps(settings))
    assert run(*command) == 0
    assert 'settings.json: an earlier version wrote it' in caplog.text
    assert len(written_masks(tmp_path / 'out')) == COUNT
    assert set(json.loads(record.read_text())['files']) == {str(tmp_path / 'mask.png'), str(tmp_path / 'clip.mp4')}


def test_states_that_cannot_be_read(run, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 2, times=1)
    command = ('--input', GOLDEN / 'clip', '--mask', FIRST, '--no_overlay', '--size', 32)
    assert run(*command) == 130
    folder = tmp_path / 'out' / '.unfinished'
    state = torch.load(folder / 'state.pt', weights_only=True)
    [row] = state['cores'][0]['rows']
    older = {name: content for name, content in state.items() if name != 'done'}
    for name, content in (('state.pt', older), ('state.pt', [1]), (row, [torch.zeros(3)]), ('state.pt', None)):
        before = (folder / name).read_bytes()
        if content is None:
            (folder / name).write_bytes(before[:100])
        else:
            torch.save(content, folder / name)
        with pytest.raises(UserError, match=rf'{name}: cannot be read, .* damaged or of another version') as error:
            run(*command)
        assert str(error.value).endswith('overwrite them or choose another place')
        assert '\n' not in str(error.value)
        (folder / name).write_bytes(before)


def test_what_a_run_left_that_has_not_begun(tmp_path):
    """Its memory frames have the names of those of another run, which would take them for its own."""
    unfinished = continuing.Unfinished(tmp_path)
    for name in ('0_0_0.pt', 'waiting/00000000.npz'):
        (unfinished.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (unfinished.folder / name).write_bytes(b'of another run')
    unfinished.resume(None, None, None)
    assert unfinished.folder.is_dir()
    assert not list(unfinished.folder.iterdir())


def test_without_room_for_its_state_a_run_comes_to_its_end(run, tmp_path, monkeypatch, caplog):
    def full(*args):
        raise OSError('the disk is full')

    monkeypatch.setattr(continuing, 'SAVE_SECONDS', 0)
    monkeypatch.setattr(continuing, '_write', full)
    assert run('--input', GOLDEN / 'clip', '--mask', FIRST, '--no_overlay', '--size', 32) == 0
    assert len(written_masks(tmp_path / 'out')) == COUNT
    assert 'it can only be continued from an earlier frame: the disk is full' in caplog.text


@pytest.mark.parametrize(('direction', 'empty'), [('forward', 4), ('backward', 7), ('both', 0)])
def test_directions(run, tmp_path, video, caplog, direction, empty, resnet_checkpoint):
    """The overlay has all frames in their order, whatever the order in which they come."""
    caplog.set_level('INFO')
    flags = ('--direction', direction, '--size', 48, '--cutouts', '--model', resnet_checkpoint)
    assert run('--input', video, '--mask', f'4={FIRST}', *flags) == 0
    masks = written_masks(tmp_path / 'out')
    assert len(masks) == COUNT
    assert sum(not mask.any() for mask in masks) == empty
    assert (f'{empty} frames ' in caplog.text and 'stay empty' in caplog.text) == (empty > 0)
    images, times = zip(*VideoReader(tmp_path / 'out' / 'overlay.mp4'), strict=True)
    originals, expected = zip(*VideoReader(video), strict=True)
    base = VideoReader(tmp_path / 'out' / 'overlay.mp4').time_base
    assert [time * base for time in times] == [time * VideoReader(video).time_base for time in expected]
    for image, original, mask in zip(images, originals, masks, strict=True):
        tinted = np.abs(image.astype(int) - original).mean(axis=2)
        assert tinted[mask == 0].mean() < 12
        assert not mask.any() or tinted[mask > 0].mean() > 20
    assert len(list((tmp_path / 'out' / 'cutouts' / '1').iterdir())) == COUNT - empty
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'cutouts',
        'masks',
        'overlay.mp4',
        'settings.json',
    ]


def test_a_camera_goes_forwards(run, video):
    with pytest.raises(DataError, match='forwards only'):
        run('--input', f'camera:{video}', '--mask', FIRST, '--direction', 'both')
