"""Video files as phones, cameras and broken disks leave them; made here, not by the writer under test."""

import logging
import struct
import sys
import weakref
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.io import DataError
from inference import video_file
from inference.video_file import OLDEST_AV, VideoReader, VideoWriter
from tests.conftest import REPOSITORY
from util.errors import MissingPackageError

av = pytest.importorskip('av')

H, W, RATE = 48, 64, Fraction(25)
VARIABLE = [0, 3000, 9000, 9007, 40_000, 40_001, 250_000, 253_003, 400_000, 1_000_000]


def picture(number: int, height: int = H, width: int = W) -> np.ndarray:
    """A smooth picture with four different corners, whose colour tells its number."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(20, 230, width)
    image[..., 1] = np.linspace(230, 40, height)[:, None]
    image[..., 2] = 40 + 7 * number % 200
    return image


def make_video(
    path: Path,
    *,
    pts=range(10),
    time_base: Fraction = 1 / RATE,
    size: tuple[int, int] = (H, W),
    pixels: str = 'yuv420p',
    codec: str = 'libx264',
    audio: str | None = None,
    rate: int = 48_000,
    container: str | None = None,
    pixel_aspect: Fraction | None = None,
) -> Path:
    """Write a video with a picture for each timestamp. ``audio``: codec of a sine that ends half a second later."""
    with av.open(str(path), 'w', format=container) as output:
        video = output.add_stream(codec, rate=RATE)
        video.height, video.width = size
        video.pix_fmt = pixels
        if pixel_aspect is not None:
            video.codec_context.sample_aspect_ratio = pixel_aspect
        video.time_base = video.codec_context.time_base = time_base
        frames = []
        for number, each in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format='rgb24')
            frame.pts, frame.time_base = each, time_base
            frames.append((each * time_base, video, frame))
        if audio:
            track = output.add_stream(audio, rate=rate)
            track.layout = 'mono'
            end = int((frames[-1][0] + Fraction(1, 2)) * rate)
            wave = (10_000 * np.sin(2 * np.pi * 440 * np.arange(end) / rate)).astype(np.int16)
            for start in range(0, end - 1023, 1024):
                sound = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format='s16', layout='mono')
                sound.sample_rate, sound.pts, sound.time_base = rate, start, Fraction(1, rate)
                frames.append((Fraction(start, rate), track, sound))
        for _, stream, frame in sorted(frames, key=lambda each: each[0]):
            output.mux(stream.encode(frame))
        for stream in output.streams:
            output.mux(stream.encode())
    return path


def read(path: Path) -> tuple[list[np.ndarray], list[Fraction]]:
    """Images, and their times in seconds."""
    with VideoReader(path) as reader:
        images, pts = zip(*reader, strict=True)
        return list(images), [each * reader.time_base for each in pts]


def copy(source: Path, target: Path) -> Path:
    with (
        VideoReader(source) as reader,
        VideoWriter(
            target,
            reader.width,
            reader.height,
            time_base=reader.time_base,
            frame_rate=reader.frame_rate,
            pixel_aspect=reader.pixel_aspect,
            audio_from=source,
        ) as writer,
    ):
        for image, pts in reader:
            writer.write(image, pts)
    return target


def audio_packets(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        return [
            (packet.pts * packet.time_base, bytes(packet))
            for packet in container.demux(audio=0)
            if packet.pts is not None
        ]


def close(image: np.ndarray, other: np.ndarray) -> bool:
    """The same picture, apart from what compression and chroma at half resolution change."""
    return image.shape == other.shape and np.abs(image.astype(int) - other).mean() < 4


def test_frames_of_a_video(tmp_path):
    with VideoReader(make_video(tmp_path / 'a.mp4')) as reader:
        assert (reader.width, reader.height, reader.frame_rate, reader.frames) == (W, H, 25, 10)
        assert not reader.has_audio
        images, pts = zip(*reader, strict=True)
        assert [each * reader.time_base for each in pts] == [Fraction(number, 25) for number in range(10)]
        assert all(close(image, picture(number)) for number, image in enumerate(images))
        assert all(image.dtype == np.uint8 and image.flags.c_contiguous for image in images)
        for again, image in zip(reader, images, strict=True):  # from the beginning
            assert np.array_equal(again[0], image)


@pytest.mark.parametrize('name', ['a.mp4', 'a.mov'])
@pytest.mark.parametrize('first', [0, 3001])
def test_variable_timestamps_are_kept_exactly(tmp_path, name, first):
    path, time_base = tmp_path / name, Fraction(1, 90_000)
    with VideoWriter(path, W, H, time_base=time_base, frame_rate=RATE) as writer:
        for number, pts in enumerate(VARIABLE):
            writer.write(picture(number), first + pts)
    images, times = read(path)
    assert times == [(first + pts) * time_base for pts in VARIABLE]
    assert all(close(image, picture(number)) for number, image in enumerate(images))
    with av.open(str(path)) as container:  # long enough for a player to show the last frame
        assert container.duration >= (VARIABLE[-1] * time_base) * 1_000_000
    assert read(copy(path, tmp_path / f'again_{name}'))[1] == times


def test_variable_timestamps_in_matroska_and_from_odd_time_bases(tmp_path):
    source = make_video(tmp_path / 'a.mkv', pts=[0, 33, 34, 500, 2000], time_base=Fraction(1, 1000))
    assert read(copy(source, tmp_path / 'b.mkv'))[1] == [Fraction(each, 1000) for each in (0, 33, 34, 500, 2000)]
    assert read(copy(source, tmp_path / 'b.mp4'))[1] == [Fraction(each, 1000) for each in (0, 33, 34, 500, 2000)]
    with VideoWriter(tmp_path / 'c.mp4', W, H, time_base=Fraction(1001, 30_000), frame_rate=RATE) as writer:
        for pts in (0, 1, 5):
            writer.write(picture(0), pts)
    assert read(tmp_path / 'c.mp4')[1] == [Fraction(1001 * each, 30_000) for each in (0, 1, 5)]


def test_audio_is_copied_up_to_the_end_of_the_pictures(tmp_path):
    source = make_video(tmp_path / 'a.mp4', pts=range(50), audio='aac')
    copied, original = audio_packets(copy(source, tmp_path / 'b.mp4')), audio_packets(source)
    assert copied == original[: len(copied)]
    assert copied[-1][0] < 2 <= original[len(copied)][0]
    assert VideoReader(tmp_path / 'b.mp4').has_audio


@pytest.mark.parametrize(
    ('source', 'codec', 'rate', 'target'),
    [
        ('a.mov', 'pcm_mulaw', 8000, 'b.mp4'),
        ('a.mkv', 'flac', 44_100, 'b.mov'),  # refused only when the header is written
    ],
)
def test_audio_that_the_container_does_not_take_is_encoded_anew(tmp_path, caplog, source, codec, rate, target):
    path = make_video(tmp_path / source, pts=range(50), audio=codec, rate=rate)
    copy(path, tmp_path / target)
    assert codec in caplog.text
    assert len(read(tmp_path / target)[0]) == 50
    with av.open(str(tmp_path / target)) as container:
        [track] = container.streams.audio
        assert track.codec_context.name == 'aac'
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(track)])
    spectrum = np.abs(np.fft.rfft(sound))
    assert abs(len(sound) / track.rate - 2) < 0.1
    assert abs(spectrum.argmax() * track.rate / len(sound) - 440) < 2


def test_an_mpeg_stream_begins_near_zero_with_audio_and_pictures_together(tmp_path):
    source = make_video(tmp_path / 'a.ts', pts=range(30), time_base=1 / RATE, audio='aac')
    _, times = read(source)
    copied = copy(source, tmp_path / 'b.mp4')
    assert times[0] < Fraction(1, 10)
    assert read(copied)[1] == times
    with av.open(str(source)) as container:
        starts = [stream.start_time * stream.time_base for stream in container.streams]
    assert abs((audio_packets(copied)[0][0] - times[0]) - (starts[1] - starts[0])) < Fraction(1, 1000)


@pytest.mark.parametrize(
    ('matrix', 'upright'),
    [
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), lambda image: np.rot90(image)),
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
    ],
)
def test_phone_videos_are_turned_upright(tmp_path, matrix, upright):
    path = make_video(tmp_path / 'a.mp4', pts=range(4))
    straight, _ = read(path)
    data = bytearray(path.read_bytes())
    start = data.index(b'tkhd') + 44  # a, b, u, c, d, ...: what a phone writes, instead of turning pixels
    a, b, c, d = (value << 16 for value in matrix)
    data[start : start + 20] = struct.pack('>5i', a, b, 0, c, d)
    path.write_bytes(data)
    images, _ = read(path)
    assert all(np.array_equal(image, upright(other)) for image, other in zip(images, straight, strict=True))
    reader = VideoReader(path)
    assert (reader.height, reader.width) == images[0].shape[:2]
    copied, _ = read(copy(path, tmp_path / 'b.mp4'))
    assert all(close(image, other) for image, other in zip(copied, images, strict=True))


@pytest.mark.parametrize('aspect', [None, Fraction(16, 11), Fraction(8, 9)])
@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.ts'])
def test_pixels_that_are_no_squares(tmp_path, aspect, suffix):
    """Only a player scales such pixels; frames are read and written with the pixels of the file."""
    reader = VideoReader(make_video(tmp_path / f'a{suffix}', pixel_aspect=aspect))
    assert {image.shape for image, _ in reader} == {(H, W, 3)}
    assert reader.pixel_aspect == (aspect or 1)
    target = tmp_path / f'b{".mp4" if suffix == ".ts" else suffix}'
    with av.open(str(copy(reader.path, target))) as copied:
        assert copied.streams.video[0].sample_aspect_ratio == (aspect or 1)


def test_pixels_that_are_no_squares_of_a_turned_video(tmp_path):
    path = make_video(tmp_path / 'a.mp4', pts=range(3), pixel_aspect=Fraction(4, 3))
    data = bytearray(path.read_bytes())
    start = data.index(b'tkhd') + 44
    data[start : start + 20] = struct.pack('>5i', 0, 1 << 16, 0, -1 << 16, 0)
    path.write_bytes(data)
    reader = VideoReader(path)
    for _ in range(2):
        assert [image.shape for image, _ in reader] == 3 * [(W, H, 3)]
        assert reader.pixel_aspect == Fraction(3, 4)


def test_colours_of_hd(tmp_path):
    """Colours are those of BT.709, as the file says, with every version of PyAV that is allowed."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 60)]
    path = tmp_path / 'a.mp4'
    with VideoWriter(path, W, H, time_base=1 / RATE, frame_rate=RATE) as writer:
        for number, colour in enumerate(colours):
            writer.write(np.full((H, W, 3), colour, np.uint8), number)
    for image, colour in zip(read(path)[0], colours, strict=True):
        assert np.abs(image.mean(axis=(0, 1)) - colour).max() < 5


def test_odd_sizes(tmp_path):
    source = make_video(tmp_path / 'a.mp4', size=(45, 61), pixels='yuv444p')
    images, _ = read(source)
    assert all(close(image, picture(number, 45, 61)) for number, image in enumerate(images))
    padded, _ = read(copy(source, tmp_path / 'b.mp4'))
    assert padded[0].shape == (46, 62, 3)
    assert all(close(other[:45, :61], image) for image, other in zip(images, padded, strict=True))


def test_frames_that_change_their_size_are_scaled_to_the_first(tmp_path, caplog):
    with open(tmp_path / 'a.mjpeg', 'wb') as file:
        for size in ((W, H), (W, H), (2 * W, 2 * H)):
            Image.fromarray(picture(0)).resize(size).save(file, format='JPEG', quality=95)
    images, times = read(tmp_path / 'a.mjpeg')
    assert [image.shape for image in images] == 3 * [(H, W, 3)]
    assert sorted(set(times)) == times
    assert 'the size changes at frame 2' in caplog.text


def test_of_a_truncated_file_the_frames_that_are_there(tmp_path, caplog):
    with VideoWriter(tmp_path / 'a.mp4', W, H, time_base=1 / RATE, frame_rate=RATE) as writer:  # index in front
        for number in range(30):
            writer.write(picture(number), number)
    whole, _ = read(tmp_path / 'a.mp4')
    assert not caplog.records
    data = (tmp_path / 'a.mp4').read_bytes()
    (tmp_path / 'b.mp4').write_bytes(data[: len(data) * 3 // 4])
    images, _ = read(tmp_path / 'b.mp4')
    assert 0 < len(images) < 30
    assert all(np.array_equal(*both) for both in zip(images[:-1], whole, strict=False))
    assert f'b.mp4: damaged or truncated; {len(images)} of about 30 frames' in caplog.text
    (tmp_path / 'c.mp4').write_bytes(make_video(tmp_path / 'd.mp4').read_bytes()[:-200])  # without its index
    with pytest.raises(DataError, match=r'c\.mp4.*complete'):
        VideoReader(tmp_path / 'c.mp4')


def test_a_slide_that_is_shown_for_long_is_no_damage(tmp_path, caplog):
    path = tmp_path / 'slides.mp4'
    with av.open(str(path), 'w') as output:
        track = output.add_stream('libx264', rate=25, options={'bf': '0'})
        track.width, track.height, track.pix_fmt = W, H, 'yuv420p'
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(picture(number), format='rgb24')
            frame.pts, frame.time_base = number, 1 / RATE
            output.mux(track.encode(frame))
        for packet in track.encode(None):
            packet.duration = 125 * packet.duration or round(5 / packet.time_base)
            output.mux(packet)
    images, _ = read(path)
    assert len(images) == 4
    assert VideoReader(path)._end > 100  # so the last one is shown for five seconds
    assert not caplog.records


@pytest.mark.parametrize('name', ['a.mp4', 'a.txt'])
def test_text_is_no_video(tmp_path, name):
    (tmp_path / name).write_text('frame\n' * 1000)
    with pytest.raises(DataError, match=name):
        VideoReader(tmp_path / name)


def test_other_files_are_no_videos(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / 'a.png')
    with av.open(str(tmp_path / 'a.wav'), 'w') as output:
        track = output.add_stream('pcm_s16le', rate=8000)
        track.layout = 'mono'
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format='s16', layout='mono')
        sound.sample_rate, sound.pts = 8000, 0
        output.mux(track.encode(sound))
    (tmp_path / 'a.m3u8').write_text('#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n')
    for name, found in (
        ('a.png', 'found a picture .* the folder of the frames'),
        ('a.wav', 'no video track'),
        ('none.mp4', 'no such'),
        ('.', 'no such'),
        ('a.m3u8', 'expected a video'),
    ):
        with pytest.raises(DataError, match=found):
            VideoReader(tmp_path / name)


def test_the_reader_holds_one_frame(tmp_path):
    path = make_video(tmp_path / 'a.mp4', pts=range(60))
    alive: list[weakref.ref] = []
    for image, _ in VideoReader(path):
        alive = [reference for reference in alive if reference() is not None]
        assert len(alive) <= 1
        alive.append(weakref.ref(image))


def test_an_exception_leaves_nothing_and_what_was_there(tmp_path):
    path = tmp_path / 'a.mp4'
    for before in (None, b'a film'):
        if before:
            path.write_bytes(before)
        with suppress(RuntimeError), VideoWriter(path, W, H, time_base=1 / RATE, frame_rate=RATE) as writer:
            writer.write(picture(0), 0)
            raise RuntimeError
        with VideoWriter(path, W, H, time_base=1 / RATE, frame_rate=RATE):
            pass  # no frames, no file
        assert [entry.read_bytes() for entry in tmp_path.iterdir()] == ([before] if before else [])


def test_the_writer_checks_what_it_gets(tmp_path):
    with pytest.raises(DataError, match=r'\.mp4'):
        VideoWriter(tmp_path / 'a.gif', W, H, time_base=1 / RATE, frame_rate=RATE)
    with VideoWriter(tmp_path / 'a.mp4', W, H, time_base=1 / RATE, frame_rate=RATE) as writer:
        writer.write(picture(0), 5)
        with pytest.raises(ValueError, match='timestamp'):
            writer.write(picture(1), 5)
        with pytest.raises(ValueError, match='uint8'):
            writer.write(picture(1)[1:], 6)
        with pytest.raises(ValueError, match='uint8'):
            writer.write(picture(1).astype(np.float32), 6)
    assert len(read(tmp_path / 'a.mp4')[0]) == 1


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
def test_a_full_disk_is_an_os_error_that_names_the_file(tmp_path, monkeypatch):
    open_file = av.open
    monkeypatch.setattr(av, 'open', lambda path, *args, **options: open_file('/dev/full', *args, **options))

    def write() -> None:
        with VideoWriter(tmp_path / 'a.mp4', W, H, time_base=1 / RATE, frame_rate=RATE) as writer:
            for number in range(100):
                writer.write(picture(number), number)

    with pytest.raises(OSError, match=r'a\.mp4: cannot write'):
        write()
    assert not list(tmp_path.iterdir())


def test_without_h264_it_is_mpeg4(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(av, 'codecs_available', set(av.codecs_available) - {'libx264'})
    with VideoWriter(tmp_path / 'a.mp4', W, H, time_base=Fraction(1, 90_000), frame_rate=RATE) as writer:
        for number in range(5):
            writer.write(picture(number), 3600 * number)
    images, times = read(tmp_path / 'a.mp4')
    assert times == [number / RATE for number in range(5)]
    assert close(images[3], picture(3))
    assert 'browsers' in caplog.text


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    (tmp_path / 'a.mp4').touch()
    for use in (
        lambda: VideoReader(tmp_path / 'a.mp4'),
        lambda: VideoWriter(tmp_path / 'b.mp4', W, H, time_base=1 / RATE, frame_rate=RATE),
    ):
        with pytest.raises(MissingPackageError, match=r'pip install -r requirements-extras\.txt'):
            use()


@pytest.mark.parametrize('version', ['14.0.0', '16.1.0', '17.0.1'])
def test_a_package_that_is_too_old(tmp_path, monkeypatch, version):
    monkeypatch.setattr(av, '__version__', version)
    (tmp_path / 'a.mp4').touch()
    with pytest.raises(MissingPackageError, match=rf'17\.1 or later, found {version}: .*requirements-extras'):
        VideoReader(tmp_path / 'a.mp4')


def test_the_oldest_package_is_the_one_of_the_requirements():
    requirements = REPOSITORY / 'requirements-extras.txt'
    assert f'av>={OLDEST_AV[0]}.{OLDEST_AV[1]}' in requirements.read_text().splitlines()


def test_no_warning_about_a_video_that_is_whole(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        for name, audio in (('a.mp4', 'aac'), ('a.mkv', 'libopus'), ('a.mov', None), ('a.ts', None)):
            read(make_video(tmp_path / name, audio=audio))
    assert not caplog.records


BACKWARDS = {
    # name -> codec, options, container, timestamps
    'one key frame': ('libx264', {'g': '1000', 'bf': '2'}, 'a.mp4', range(40)),
    'many key frames': ('libx264', {'g': '7', 'bf': '3'}, 'a.mkv', range(40)),
    'only key frames': ('libx264', {'g': '1', 'bf': '0'}, 'a.mp4', range(40)),
    'groups that refer to each other': (
        'libx264',
        {'g': '8', 'bf': '3', 'x264-params': 'open-gop=1'},
        'a.ts',
        range(40),
    ),
    'no key frames but the first': ('libx264', {'x264-params': 'intra-refresh=1:keyint=10'}, 'a.mp4', range(40)),
    'MPEG-2': ('mpeg2video', {'g': '9', 'bf': '2'}, 'a.mpg', range(40)),
    'no timestamps': ('libx264', {'g': '7', 'bf': '2'}, 'a.h264', range(40)),
    'variable': ('libx264', {'g': '5'}, 'a.mkv', [n * n + n % 3 for n in range(1, 41)]),
}


@pytest.mark.parametrize('name', BACKWARDS)
@pytest.mark.parametrize('chunk', [8, 1000])
def test_backwards_the_same_frames_come(tmp_path, monkeypatch, name, chunk):
    codec, options, file, times = BACKWARDS[name]
    monkeypatch.setattr(video_file, 'CHUNK_BYTES', chunk * H * W * 3)
    path = tmp_path / file
    rng = np.random.default_rng(0)
    with av.open(str(path), 'w') as output:
        video = output.add_stream(codec, rate=RATE, options=options)
        video.height, video.width, video.pix_fmt = H, W, 'yuv420p'
        video.codec_context.time_base = 1 / RATE
        for number, pts in enumerate(times):
            image = picture(number)
            image[:16, :16] = rng.integers(0, 255, 3)
            frame = av.VideoFrame.from_ndarray(image, format='rgb24')
            frame.pts, frame.time_base = pts, 1 / RATE
            output.mux(video.encode(frame))
        output.mux(video.encode())
    reader = VideoReader(path)
    forwards = list(reader)
    assert reader.count() == len(forwards) == 40
    for begin in (39, 20, 0):
        backwards = list(reader.backwards(begin))
        assert len(backwards) == begin + 1
        for (image, pts), (other, time) in zip(backwards, forwards[begin::-1], strict=True):
            assert pts == time
            assert np.array_equal(image, other)


def test_backwards_in_a_damaged_file(tmp_path, monkeypatch):
    monkeypatch.setattr(video_file, 'CHUNK_BYTES', 0)
    path = make_video(tmp_path / 'whole.ts', pts=range(200))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 100] = bytes(100)
    path.write_bytes(data[: -len(data) // 10])
    reader = VideoReader(path)
    times = [pts for _, pts in reader]
    assert 20 < len(times) < 200
    assert [pts for _, pts in reader.backwards(reader.count() - 1)] == times[::-1]


def test_the_reader_holds_a_chunk_backwards(tmp_path, monkeypatch):
    monkeypatch.setattr(video_file, 'CHUNK_BYTES', 0)
    reader = VideoReader(make_video(tmp_path / 'a.mp4', pts=range(60)))
    held = []
    for image, _ in reader.backwards(reader.count() - 1):
        held = [each for each in held if each() is not None] + [weakref.ref(image)]
        del image
    assert len(held) <= 1
    path = reader.path
    make_video(path, pts=range(10))
    with pytest.raises(DataError, match='Was the file changed'):
        list(reader.backwards(59))


def test_messages_of_ffmpeg_do_not_wait_for_python():
    """A decoding thread that takes Python's lock to log something hangs with a thread that closes its file."""
    av_logging = pytest.importorskip('av.logging')
    av_logging.set_level(av_logging.ERROR)  # as importing torchvision 0.21 does
    errors, _ = av_logging.get_last_error()
    av_logging.log(av_logging.ERROR, 'decoder', 'a damaged picture')
    assert av_logging.get_last_error()[0] == errors + 1
    video_file.import_av()
    av_logging.log(av_logging.ERROR, 'decoder', 'a damaged picture')
    assert av_logging.get_last_error()[0] == errors + 1
