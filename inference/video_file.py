"""Video files: frames in, frames out, one at a time. Needs PyAV, an optional package, only where a file is opened."""

import itertools
import logging
import struct
import zlib
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from util.errors import DataError, MissingPackageError
from util.files import atomic_path

if TYPE_CHECKING:
    import av

log = logging.getLogger(__name__)

CONTAINERS = {'.mp4': 'mp4', '.m4v': 'mp4', '.mov': 'mov', '.mkv': 'matroska'}  # suffix -> muxer
# What FFmpeg also opens: text as pictures of text, lists of other files; single images end in _pipe.
NOT_VIDEOS = {'tty', 'image2', 'hls', 'dash', 'concat'}
# MPEG streams count their time from anywhere, not from zero.
UNANCHORED = {'mpegts', 'mpeg'}
MICROSECOND = Fraction(1, 1_000_000)
BT709, LIMITED_RANGE = 1, 1  # FFmpeg's numbers
CHUNK_BYTES = 256 * 2**20  # of frames that are held at a time while a file is read backwards
CHUNK_FRAMES = 8  # at least, however large they are
OLDEST_AV = 17  # what is older decodes BT.709, the colours of HD, with the matrix of BT.601


def import_av() -> ModuleType:
    """The package ``av``.

    Raises:
        MissingPackageError: it is not installed, or too old. The message says how to install it.
    """
    try:
        import av
    except ImportError as error:
        raise MissingPackageError(
            'video files need the package av (PyAV), which cannot be imported '
            f'({error}): pip install -r requirements-extras.txt'
        ) from error
    if int(av.__version__.split('.')[0]) < OLDEST_AV:
        raise MissingPackageError(
            f'video files need the package av (PyAV) {OLDEST_AV} or later, found {av.__version__}, which shows HD in '
            'wrong colours: pip install -r requirements-extras.txt'
        )
    return av


class _Entry(NamedTuple):
    """What is remembered of a frame, to find it again."""

    time: int | None  # the file's own timestamp
    key: bool  # whether decoding can begin here, as the file says
    pts: int  # as iterating gives it
    checksum: int  # of its pixels


class VideoReader:
    """The frames of a video file in the order in which they are shown, upright.

    Iterating decodes from the beginning, every time anew, and holds one frame. :meth:`backwards` gives the same frames
    from the last to the first, and holds some 256 MiB of them. Frames that cannot be
    decoded, and what is missing at the end of a truncated file, are left out with a warning.

    Attributes:
        width, height: of the frames: turned as the file asks for, and of the pixels that there are.
        pixel_aspect: width of a pixel to its height. Players scale the frame by it; here it stays as it is.
        frame_rate: on average.
        time_base: seconds of one tick of the timestamps.
        frames: how many there will be, as far as the file says; an estimate.
        has_audio: whether there is an audio track.

    Raises:
        DataError: the file is missing, is no video, or none of its frames can be decoded.
        MissingPackageError: PyAV is not installed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.frame_rate = Fraction(25)
        self.time_base = MICROSECOND
        self.frames: int | None = None
        self.has_audio = False
        self._origin = self._end = 0  # of the timestamps; in ticks
        self._damaged = 0  # packets, by the running iterator
        self._running: Generator | None = None
        self._index: list[_Entry] = []
        self._counted = False
        decoded = self._decode()
        first = next(decoded, None)
        decoded.close()
        if first is None:
            raise DataError(f'{self.path}: expected a video, but no frame can be decoded. Is the file whole?')
        self._coded_size = first.width, first.height
        self._matrix = _display_matrix(first)
        self.height, self.width = self._to_image(first).shape[:2]
        self.pixel_aspect = 1 / self._coded_aspect if _is_on_its_side(self._matrix) else self._coded_aspect

    def __enter__(self) -> 'VideoReader':
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration, if one is under way."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        """Frames as uint8 [H, W, 3] RGB, each with its timestamp in ticks of ``time_base``, which increase."""
        self.close()
        self._running = self._images()
        return self._running

    def count(self) -> int:
        """How many frames there are. The file is decoded for it, once: what it says of itself is an estimate."""
        if not self._counted:
            self._index = [
                _Entry(frame.pts, bool(frame.key_frame), pts, _checksum(self._to_image(frame)))
                for frame, pts in self._frames()
            ]
            self._counted = True
        return len(self._index)

    def backwards(self, begin: int) -> Iterator[tuple[np.ndarray, int]]:
        """The frames from number ``begin`` down to 0, each as iterating forwards gives it, bit for bit.

        They are decoded in chunks, each from the key frame before it. A frame is checked against the first decoding;
        where a file cannot be entered in its middle, it is decoded from its beginning for every chunk, which takes
        longer and no more memory.

        Raises:
            DataError: the file was changed meanwhile.
        """
        self.count()
        limit = max(CHUNK_FRAMES, CHUNK_BYTES // (self.height * self.width * 3))
        end = begin + 1
        while end > 0:
            lowest = max(0, end - limit)
            # A key frame, so that nothing is decoded twice; with key frames that are farther apart, any frame.
            first = next((number for number in range(lowest, end) if self._index[number].key), lowest)
            images = self._chunk(first, end)
            for number in range(end - 1, first - 1, -1):
                yield images.pop(), self._index[number].pts
            end = first

    def _chunk(self, first: int, end: int) -> list[np.ndarray]:
        """The frames of these numbers."""
        expected = [entry.checksum for entry in self._index[first:end]]
        images: list[np.ndarray] = []
        for start in (*self._entrances(first), 0):
            images = self._decode_chunk(start, first, end)
            if [_checksum(image) for image in images] == expected:
                return images
        # Of a damaged file, decoders in parallel may make up other pixels every time.
        if len(images) < end - first:
            raise DataError(f'{self.path}: expected {len(self._index)} frames as before, found fewer: was it changed?')
        return images

    def _entrances(self, first: int) -> list[int]:
        """Frames at which decoding may begin to come to frame ``first``, the nearest first."""
        keys = (number for number in range(first, 0, -1) if self._index[number].key)
        return [number for number in itertools.islice(keys, 2) if self._index[number].time is not None]

    def _decode_chunk(self, start: int, first: int, end: int) -> list[np.ndarray]:
        """Frames ``first`` to ``end``, decoded from ``start``; fewer if that does not lead to them."""
        images: list[np.ndarray] = []
        number = start
        with closing(self._decode(self._index[start].time if start else None)) as frames:
            for frame in frames:
                if start and number == start and frame.pts != self._index[start].time:
                    continue  # from before the key frame, perhaps not whole
                if number >= first:
                    images.append(self._to_image(frame))
                number += 1
                if number == end:
                    break
        return images

    def _images(self) -> Generator[tuple[np.ndarray, int], None, None]:
        with closing(self._frames()) as frames:
            for frame, pts in frames:
                yield self._to_image(frame), pts

    def _frames(self) -> Generator[tuple['av.VideoFrame', int], None, None]:
        """As decoded, each with its timestamp; complains at the end of what was not there."""
        step = max(1, round(1 / (self.frame_rate * self.time_base)))
        count, last, resized = 0, None, False
        for frame in self._decode():
            if frame.pts is None:
                pts = 0 if last is None else last + step
            else:
                pts = frame.pts - self._origin
            last = pts if last is None else max(pts, last + 1)
            if not resized and (frame.width, frame.height) != self._coded_size:
                resized = True
                log.warning(
                    '%s: the size changes at frame %d from %d x %d to %d x %d; frames are scaled to the first size',
                    self.path,
                    count,
                    *self._coded_size,
                    frame.width,
                    frame.height,
                )
            yield frame, last
            count += 1
        if self._damaged or (last is not None and self._end - last > 2 * step):
            expected = f' of about {self.frames}' if self.frames else ''
            log.warning('%s: damaged or truncated; %d%s frames could be decoded', self.path, count, expected)

    def _decode(self, time: int | None = None) -> Generator['av.VideoFrame', None, None]:
        """Decoded frames, from the key frame of a timestamp on; sets what the container says about them."""
        self._damaged = 0
        with _open(self.path) as container:
            av = import_av()
            stream = _picture_stream(container, self.path)
            # Frames in parallel; the delay is as many frames as there are threads.
            stream.thread_type = 'AUTO'
            self._describe(container, stream)
            if time is not None:
                try:
                    container.seek(time, stream=stream)
                except av.FFmpegError:
                    return
            packets = container.demux(stream)
            while True:
                try:
                    if (packet := next(packets, None)) is None:
                        return
                    self._damaged += packet.is_corrupt
                    frames = packet.decode()
                except av.FFmpegError:
                    self._damaged += 1
                    continue
                yield from frames

    def _describe(self, container: 'av.container.InputContainer', stream: 'av.VideoStream') -> None:
        self.time_base = _time_base(stream)
        self.frame_rate = stream.average_rate or stream.guessed_rate or self.frame_rate
        self.has_audio = bool(container.streams.audio)
        self._coded_aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
        self._origin = round(_origin(container) / self.time_base)
        seconds = None
        if stream.duration:
            seconds = stream.duration * self.time_base
            self._end = (stream.start_time or 0) + stream.duration - self._origin
        elif container.duration:
            # That of the longest track, which may be another one.
            seconds = container.duration * MICROSECOND
            self._end = round((seconds - Fraction(1, 2)) / self.time_base)
        if stream.frames:
            self.frames = stream.frames
        elif seconds:
            self.frames = max(1, round(seconds * self.frame_rate))

    def _to_image(self, frame: 'av.VideoFrame') -> np.ndarray:
        width, height = self._coded_size
        return _turn(frame.to_ndarray(format='rgb24', width=width, height=height), self._matrix)


class VideoWriter:
    """Writes frames to an H.264 video (MPEG-4 part 2 where FFmpeg has no libx264), with the audio of another file.

    The file appears once the ``with`` block ends well and a frame was written; after an exception nothing is left.
    Timestamps are kept as they are. Odd sizes get a row or column more, since chroma has half the resolution.

    The audio is copied packet by packet, or encoded as AAC where the container does not take its codec, and
    ends with the pictures. It keeps its timestamps, so those of the pictures have to be the same file's.

    Args:
        path: .mp4, .m4v, .mov or .mkv.
        width, height: of the frames.
        time_base: seconds of one tick of the timestamps.
        frame_rate: on average; a help for players and for the encoder only.
        pixel_aspect: width of a pixel to its height, for players.
        audio_from: a file with the audio track; one without is fine.

    Raises:
        DataError: another suffix.
        MissingPackageError: PyAV is not installed.
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        *,
        time_base: Fraction,
        frame_rate: Fraction,
        pixel_aspect: Fraction = Fraction(1),
        audio_from: str | Path | None = None,
    ):
        self.path = Path(path)
        if self.path.suffix.lower() not in CONTAINERS:
            raise DataError(f'{path}: expected the name of a video with one of the suffixes {", ".join(CONTAINERS)}')
        self.width, self.height = width, height
        self.time_base = Fraction(time_base)
        self.frame_rate = Fraction(frame_rate)
        self.pixel_aspect = Fraction(pixel_aspect)
        self.audio_from = audio_from
        self._av = import_av()
        self._last: int | None = None
        self._gap = 0  # between the last two frames, in ticks
        self._audio: _AudioTrack | None = None

    def __enter__(self) -> 'VideoWriter':
        with ExitStack() as files, self._errors():
            temporary = files.enter_context(atomic_path(self.path))
            self._container = self._open_container(temporary)
            files.callback(self._close_anyhow)
            try:
                self._begin(copy_audio=True)
            except self._av.FFmpegError:
                if self._audio is None:
                    raise
                # A codec that the container takes on paper (FLAC in .mov) may be refused with the header.
                self._close_anyhow()
                self._container = self._open_container(temporary)
                self._begin(copy_audio=False)
            self._files = files.pop_all()
        return self

    def write(self, image: np.ndarray, pts: int) -> None:
        """The next frame: uint8 [H, W, 3] RGB, and its timestamp in ticks of ``time_base``.

        Raises:
            ValueError: another shape, or a timestamp that is not above the one before.
            OSError: the file cannot be written.
        """
        if image.shape != (self.height, self.width, 3) or image.dtype != np.uint8:
            raise ValueError(
                f'expected uint8 [{self.height}, {self.width}, 3], found {image.dtype} {list(image.shape)}'
            )
        if self._last is not None and pts <= self._last:
            raise ValueError(f'expected a timestamp above {self._last}, found {pts}')
        image = np.pad(image, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode='edge')
        frame = self._av.VideoFrame.from_ndarray(image, format='rgb24').reformat(
            format='yuv420p', dst_colorspace='ITU709', dst_color_range='MPEG'
        )
        frame.pts, frame.time_base = pts, self.time_base
        with self._errors():
            self._container.mux(self._stream.encode(frame))
            if self._audio is not None:
                self._audio.write_until(pts * self.time_base)
        if self._last is not None:
            self._gap = pts - self._last
        self._last = pts

    def __exit__(self, error_type: type[BaseException] | None, *_) -> None:
        with suppress(_Incomplete), self._files:
            if error_type is not None or self._last is None:
                raise _Incomplete
            with self._errors():
                self._container.mux(self._stream.encode())
                if self._audio is not None:
                    shown = self._gap * self.time_base or 1 / self.frame_rate
                    self._audio.write_until(self._last * self.time_base + shown)
                self._container.close()

    def _begin(self, *, copy_audio: bool) -> None:
        """Everything up to the header."""
        self._stream = self._add_stream()
        if self.audio_from is not None:
            self._audio = _AudioTrack(self.audio_from, self._container, copy=copy_audio)
        self._container.start_encoding()

    def _open_container(self, path: Path) -> 'av.container.OutputContainer':
        kind = CONTAINERS[self.path.suffix.lower()]
        options = {}
        if kind != 'matroska':
            # The index in front, so that browsers can begin at once. The track's own tick for the whole movie, too,
            # or a start other than zero would be rounded to milliseconds.
            options = {'movflags': '+faststart', 'movie_timescale': str(self._timescale())}
        return self._av.open(str(path), 'w', format=kind, options=options)

    def _timescale(self) -> int:
        """Ticks a second of an MP4 track: the muxer doubles what is below 10,000."""
        scale = self.time_base.denominator
        while scale < 10_000:
            scale *= 2
        return scale

    def _add_stream(self) -> 'av.VideoStream':
        rate = self.frame_rate.limit_denominator(1001)
        time_base = self.time_base
        if 'libx264' in self._av.codecs_available:
            # Without B-frames, decoding times are presentation times: durations are right at a variable frame rate.
            stream = self._container.add_stream(
                'libx264', rate=rate, options={'crf': '20', 'preset': 'veryfast', 'bf': '0'}
            )
        else:
            log.warning('%s: no libx264 here; it becomes MPEG-4 part 2, which browsers do not play', self.path)
            stream = self._container.add_stream('mpeg4', rate=rate, options={'q:v': '3'})
            if time_base.denominator > 65535:  # all that the codec can express
                time_base = Fraction(1, 60_000)
        stream.width, stream.height = self.width + self.width % 2, self.height + self.height % 2
        stream.pix_fmt = 'yuv420p'
        codec = stream.codec_context
        codec.time_base = stream.time_base = time_base
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709
        codec.color_range = LIMITED_RANGE
        codec.sample_aspect_ratio = self.pixel_aspect
        return stream

    def _close_anyhow(self) -> None:
        """The file is deleted, or closed already."""
        if self._audio is not None:
            self._audio.close()
        with suppress(self._av.FFmpegError):
            self._container.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._av.FFmpegError as error:
            raise OSError(f'{self.path}: cannot write the video ({error.strerror or error})') from error


class _Incomplete(Exception):
    """Ends the writing so that nothing is left."""


class _AudioTrack:
    """The first audio track of a file, muxed into another one piece by piece; AAC unless it can be a copy."""

    def __init__(self, path: str | Path, output: 'av.container.OutputContainer', *, copy: bool):
        self.path = path
        self._av = import_av()
        self._output = output
        self._source = _open(path)
        self._upcoming: av.Packet | None = None
        self._packets: Iterator[av.Packet] = iter(())
        if not self._source.streams.audio:
            return
        [source, *_] = self._source.streams.audio
        track = None
        if copy:
            with suppress(ValueError):  # the container does not take the codec
                track = output.add_stream_from_template(source)
                self._packets = self._copied(source, track)
        if track is None:
            log.warning(
                '%s: its audio becomes AAC, since the file to write does not take %s', path, source.codec_context.name
            )
            track = output.add_stream('aac', rate=48_000)
            track.layout = 'mono' if source.layout.nb_channels == 1 else 'stereo'
            self._packets = self._encoded(source, track)
        self._upcoming = next(self._packets, None)

    def close(self) -> None:
        self._packets = iter(())
        self._source.close()

    def write_until(self, seconds: Fraction) -> None:
        """Mux what begins before."""
        while self._upcoming is not None and _start(self._upcoming) < seconds:
            self._output.mux(self._upcoming)
            self._upcoming = next(self._packets, None)

    def _copied(self, source: 'av.AudioStream', track: 'av.AudioStream') -> Iterator['av.Packet']:
        origin = round(_origin(self._source) / _time_base(source))
        last: int | None = None
        for packet in self._demuxed(source):
            # Muxers refuse times that stand still.
            if packet.pts is None or packet.dts is None or (last is not None and packet.dts <= last):
                continue
            last = packet.dts
            packet.stream = track
            packet.pts, packet.dts = packet.pts - origin, packet.dts - origin
            yield packet

    def _encoded(self, source: 'av.AudioStream', track: 'av.AudioStream') -> Iterator['av.Packet']:
        for packet in self._demuxed(source):
            with suppress(self._av.FFmpegError):
                for frame in source.decode(packet):
                    if frame.pts is not None:
                        frame.pts -= round(_origin(self._source) / _time_base(frame))
                    yield from track.encode(frame)
        yield from track.encode()

    def _demuxed(self, source: 'av.AudioStream') -> Iterator['av.Packet']:
        try:
            yield from self._source.demux(source)
        except self._av.FFmpegError as error:
            log.warning('%s: its audio is damaged (%s); the rest of it is left out', self.path, error)


def _open(path: str | Path) -> 'av.container.InputContainer':
    """A file, opened to read.

    Raises:
        DataError: it is missing, or no video or audio file.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f'{path}: no such video file')
    av = import_av()
    try:
        # The full path, since FFmpeg takes a colon in a name for a protocol; and no network, whatever the file says.
        container = av.open(str(path.resolve()), metadata_errors='replace', options={'protocol_whitelist': 'file'})
    except av.FFmpegError as error:
        raise DataError(
            f'{path}: expected a video, cannot read it ({error.strerror or error}). Is the file whole, and a video?'
        ) from error
    if NOT_VIDEOS & set(container.format.name.split(',')) or container.format.name.endswith('_pipe'):
        container.close()
        kind = container.format.name
        if kind.endswith('_pipe'):
            raise DataError(f'{path}: expected a video, found a picture ({kind}). Give the folder of the frames.')
        raise DataError(f'{path}: expected a video, found a file of another kind ({kind})')
    return container


def _picture_stream(container: 'av.container.InputContainer', path: Path) -> 'av.VideoStream':
    """The first video stream that is not a cover picture."""
    av = import_av()
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    raise DataError(f'{path}: expected a video, found no video track in it')


def _time_base(timed: 'av.stream.Stream | av.frame.Frame') -> Fraction:
    """Seconds of one tick of its timestamps; FFmpeg's own tick where it says nothing."""
    return timed.time_base or MICROSECOND


def _start(packet: 'av.Packet') -> Fraction:
    """When it begins, in seconds; zero where it does not say."""
    return (packet.pts or 0) * packet.time_base


def _origin(container: 'av.container.InputContainer') -> Fraction:
    """The time in seconds that counts as zero."""
    start = container.start_time or 0
    return start * MICROSECOND if start < 0 or container.format.name in UNANCHORED else Fraction(0)


def _display_matrix(frame: 'av.VideoFrame') -> tuple[int, int, int, int]:
    """How to show the frame: a pixel at (x, y) goes to (a x + c y, b x + d y), up to a shift, for a, b, c, d."""
    data = frame.side_data.get('DISPLAYMATRIX')
    if data is None:
        return 1, 0, 0, 1
    # PyAV's stubs do not know this side data, and make an object of it.
    a, b, _, c, d = struct.unpack_from('=5i', bytes(data))  # type: ignore[call-overload]
    return a, b, c, d


def _checksum(image: np.ndarray) -> int:
    return zlib.crc32(image.data)


def _is_on_its_side(matrix: tuple[int, int, int, int]) -> bool:
    a, b, _, _ = matrix
    return abs(b) > abs(a)


def _turn(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """An image [h, w, 3], turned and mirrored by the quarter turns nearest to a display matrix."""
    a, b, c, d = matrix
    if _is_on_its_side(matrix):
        image, across, down = image.swapaxes(0, 1), c, b
    else:
        across, down = a, d
    return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])
