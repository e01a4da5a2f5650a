"""Reads and writes video files frame by frame. PyAV, an optional package, is needed only when a file is opened."""

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
# Formats that FFmpeg also opens but that are no videos: text, and lists of other files. Image formats end in _pipe.
NOT_VIDEOS = {'tty', 'image2', 'hls', 'dash', 'concat'}
# The timestamps of MPEG streams begin at any number, not at zero.
UNANCHORED = {'mpegts', 'mpeg'}
MICROSECOND = Fraction(1, 1_000_000)
BT709, LIMITED_RANGE = 1, 1  # FFmpeg's numbers for these colours
CHUNK_BYTES = 256 * 2**20  # bytes of decoded frames that are held while a file is read backwards
CHUNK_FRAMES = 8  # frames that are held at least, however large they are
# PyAV 16 decodes BT.709, the colours of HD, with the matrix of BT.601; 17.0 crashes on MPEG program streams.
OLDEST_AV = (17, 1)


def import_av() -> ModuleType:
    """Import the package ``av``.

    Raises:
        MissingPackageError: it is not installed or too old. The message says how to install it.
    """
    try:
        import av
        import av.logging
    except ImportError as error:
        raise MissingPackageError(
            'video files need the package av (PyAV), which cannot be imported '
            f'({error}): pip install -r requirements-extras.txt'
        ) from error
    # Importing some versions of torchvision sends FFmpeg's messages to Python. A decoding thread that has a message
    # then waits for Python's lock, which is held by whoever closes the file and waits for the thread: both hang.
    av.logging.set_level(None)
    if tuple(map(int, av.__version__.split('.')[:2])) < OLDEST_AV:
        raise MissingPackageError(
            f'video files need the package av (PyAV) {OLDEST_AV[0]}.{OLDEST_AV[1]} or later, found {av.__version__}: '
            'pip install -r requirements-extras.txt'
        )
    return av


class _Entry(NamedTuple):
    """What is remembered of a frame to find it again when reading backwards."""

    time: int | None  # the file's own timestamp
    key: bool  # whether it is a key frame, at which decoding can begin
    pts: int  # the timestamp that iterating gives
    checksum: int  # checksum of its pixels


class VideoReader:
    """Reads the frames of a video file, upright and in the order in which they are shown.

    Iterating decodes the file from the beginning and holds one frame at a time. :meth:`backwards` gives the same
    frames from the last to the first and holds some 256 MiB of them. Frames that cannot be decoded, or that are
    missing at the end of a truncated file, are left out with a warning.

    Attributes:
        width, height: the size of the frames in pixels, after the rotation that the file asks for.
        pixel_aspect: width of a pixel divided by its height. Players scale the frame by it; this class does not.
        frame_rate: frames a second, on average.
        time_base: seconds of one tick of the timestamps.
        frames: an estimate of the number of frames, from what the file states; ``None`` if it states nothing.
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
        self._origin = self._end = 0  # start and end of the video, in ticks
        self._damaged = 0  # damaged packets that the running iteration has met
        self._running: Generator | None = None
        self._index: list[_Entry] = []
        self._counted = False
        decoded = self._decode()
        first = next(decoded, None)
        decoded.close()
        if first is None:
            raise DataError(f'{self.path}: expected a video, but no frame can be decoded. Is the file complete?')
        self._coded_size = first.width, first.height
        self._matrix = _display_matrix(first)
        self.height, self.width = self._to_image(first).shape[:2]
        self.pixel_aspect = 1 / self._coded_aspect if _is_on_its_side(self._matrix) else self._coded_aspect

    def __enter__(self) -> 'VideoReader':
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the running iteration, if there is one."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        """Frames as uint8 [H, W, 3] RGB, each with its timestamp in ticks of ``time_base``. Timestamps increase."""
        self.close()
        self._running = self._images()
        return self._running

    def count(self) -> int:
        """The exact number of frames. The first call decodes the whole file, since ``frames`` is only an estimate."""
        if not self._counted:
            self._index = [
                _Entry(frame.pts, bool(frame.key_frame), pts, _checksum(self._to_image(frame)))
                for frame, pts in self._frames()
            ]
            self._counted = True
        return len(self._index)

    def backwards(self, begin: int) -> Iterator[tuple[np.ndarray, int]]:
        """The frames from number ``begin`` down to 0, bit for bit as iterating forwards gives them.

        They are decoded in chunks, each from the key frame before it, and checked against the checksums of the first
        decoding. If decoding cannot begin in the middle of the file, every chunk is decoded from the file's beginning,
        which takes longer but no more memory.

        Raises:
            DataError: the file has fewer frames than at the first decoding, so it was changed.
        """
        self.count()
        limit = max(CHUNK_FRAMES, CHUNK_BYTES // (self.height * self.width * 3))
        end = begin + 1
        while end > 0:
            lowest = max(0, end - limit)
            # A chunk begins at a key frame if it has one, so that nothing is decoded twice.
            first = next((number for number in range(lowest, end) if self._index[number].key), lowest)
            images = self._chunk(first, end)
            for number in range(end - 1, first - 1, -1):
                yield images.pop(), self._index[number].pts
            end = first

    def _chunk(self, first: int, end: int) -> list[np.ndarray]:
        """The frames from number ``first`` to ``end``, exclusive."""
        expected = [entry.checksum for entry in self._index[first:end]]
        images: list[np.ndarray] = []
        for start in (*self._entrances(first), 0):
            images = self._decode_chunk(start, first, end)
            if [_checksum(image) for image in images] == expected:
                return images
        # Checksums may differ for a damaged file: parallel decoders can fill its gaps with other pixels every time.
        if len(images) < end - first:
            raise DataError(
                f'{self.path}: expected {len(self._index)} frames as before, found fewer. Was the file changed?'
            )
        return images

    def _entrances(self, first: int) -> list[int]:
        """Key frames from which decoding may reach frame ``first``, the nearest one first."""
        keys = (number for number in range(first, 0, -1) if self._index[number].key)
        return [number for number in itertools.islice(keys, 2) if self._index[number].time is not None]

    def _decode_chunk(self, start: int, first: int, end: int) -> list[np.ndarray]:
        """Frames ``first`` to ``end``, exclusive, decoded from ``start``; fewer if some are not reached."""
        images: list[np.ndarray] = []
        number = start
        with closing(self._decode(self._index[start].time if start else None)) as frames:
            for frame in frames:
                if start and number == start and frame.pts != self._index[start].time:
                    continue  # a frame before the key frame, which may be incomplete
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
        """Decoded frames, each with its timestamp. At the end, a warning says if frames are missing."""
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
        # The last frame of a slide show may be shown for long: if the file states how many frames it has, that counts.
        ends_early = last is not None and self._end - last > 2 * step and not 0 < self._stated <= count
        if self._damaged or ends_early:
            expected = f' of about {self.frames}' if self.frames else ''
            log.warning('%s: damaged or truncated; %d%s frames could be decoded', self.path, count, expected)

    def _decode(self, time: int | None = None) -> Generator['av.VideoFrame', None, None]:
        """Decode frames from the key frame at or before a timestamp on; sets the attributes that the file states."""
        self._damaged = 0
        with _open(self.path) as container:
            av = import_av()
            stream = _picture_stream(container, self.path)
            # Frames are decoded in parallel, which delays the first one by as many frames as there are threads.
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
            # The duration of the container is that of its longest track, which may be the audio.
            seconds = container.duration * MICROSECOND
            self._end = round((seconds - Fraction(1, 2)) / self.time_base)
        self._stated = stream.frames  # 0 if the file does not say
        if self._stated:
            self.frames = self._stated
        elif seconds:
            self.frames = max(1, round(seconds * self.frame_rate))

    def _to_image(self, frame: 'av.VideoFrame') -> np.ndarray:
        width, height = self._coded_size
        return _turn(frame.to_ndarray(format='rgb24', width=width, height=height), self._matrix)


class VideoWriter:
    """Writes frames to an H.264 video (MPEG-4 part 2 if FFmpeg has no libx264), with the audio of another file.

    The file appears when the ``with`` block ends without an exception and a frame was written; otherwise nothing is
    left. Timestamps are kept. Odd sizes get one more row or column, since the chroma has half the resolution.

    The audio is copied packet by packet, or encoded as AAC if the container does not support its codec. It ends when
    the pictures end. The audio keeps its timestamps, so the pictures need the timestamps of the same file.

    Args:
        path: the file to write, with the suffix .mp4, .m4v, .mov or .mkv.
        width, height: the size of the frames in pixels.
        time_base: seconds of one tick of the timestamps.
        frame_rate: frames a second, on average; only a hint for players and the encoder.
        pixel_aspect: width of a pixel divided by its height, for players.
        audio_from: a file whose audio track is used, if it has one.

    Raises:
        DataError: the path has another suffix.
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
        self._gap = 0  # ticks between the last two frames
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
                # Some codecs are only refused when the header is written, for example FLAC in .mov.
                self._close_anyhow()
                self._container = self._open_container(temporary)
                self._begin(copy_audio=False)
            self._files = files.pop_all()
        return self

    def write(self, image: np.ndarray, pts: int) -> None:
        """Write the next frame, uint8 [H, W, 3] RGB, with its timestamp in ticks of ``time_base``.

        Raises:
            ValueError: the image has another shape or type, or the timestamp is not above the one before.
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
        """Add the tracks and write the header."""
        self._stream = self._add_stream()
        if self.audio_from is not None:
            self._audio = _AudioTrack(self.audio_from, self._container, copy=copy_audio)
        self._container.start_encoding()

    def _open_container(self, path: Path) -> 'av.container.OutputContainer':
        kind = CONTAINERS[self.path.suffix.lower()]
        options = {}
        if kind != 'matroska':
            # The index goes to the front, so that browsers can start playing at once. The movie gets the time scale of
            # the track; otherwise a start other than zero would be rounded to milliseconds.
            options = {'movflags': '+faststart', 'movie_timescale': str(self._timescale())}
        return self._av.open(str(path), 'w', format=kind, options=options)

    def _timescale(self) -> int:
        """Ticks a second of an MP4 track: the muxer doubles a smaller number until it is at least 10,000."""
        scale = self.time_base.denominator
        while scale < 10_000:
            scale *= 2
        return scale

    def _add_stream(self) -> 'av.VideoStream':
        rate = self.frame_rate.limit_denominator(1001)
        time_base = self.time_base
        if 'libx264' in self._av.codecs_available:
            # Without B-frames, decoding and presentation times are equal, so durations are right at a variable rate.
            stream = self._container.add_stream(
                'libx264', rate=rate, options={'crf': '20', 'preset': 'veryfast', 'bf': '0'}
            )
        else:
            log.warning(
                '%s: FFmpeg has no libx264; the video becomes MPEG-4 part 2, which browsers do not play', self.path
            )
            stream = self._container.add_stream('mpeg4', rate=rate, options={'q:v': '3'})
            if time_base.denominator > 65535:  # the codec's largest denominator
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
        """Close all files and ignore errors: the file is complete already, or will be deleted."""
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
    """Leaves the block of the temporary file, so that the file is deleted."""


class _AudioTrack:
    """Writes the first audio track of a file into another one, piece by piece: as a copy or, if need be, as AAC."""

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
            with suppress(ValueError):  # the container does not support the codec
                track = output.add_stream_from_template(source)
                self._packets = self._copied(source, track)
        if track is None:
            log.warning(
                '%s: its audio is encoded as AAC, because the output format does not support %s',
                path,
                source.codec_context.name,
            )
            track = output.add_stream('aac', rate=48_000)
            track.layout = 'mono' if source.layout.nb_channels == 1 else 'stereo'
            self._packets = self._encoded(source, track)
        self._upcoming = next(self._packets, None)

    def close(self) -> None:
        self._packets = iter(())
        self._source.close()

    def write_until(self, seconds: Fraction) -> None:
        """Write all audio packets that begin before this time."""
        while self._upcoming is not None and _start(self._upcoming) < seconds:
            self._output.mux(self._upcoming)
            self._upcoming = next(self._packets, None)

    def _copied(self, source: 'av.AudioStream', track: 'av.AudioStream') -> Iterator['av.Packet']:
        origin = round(_origin(self._source) / _time_base(source))
        last: int | None = None
        for packet in self._demuxed(source):
            # Muxers refuse packets whose times do not increase.
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
    """Open a file for reading.

    Raises:
        DataError: the file is missing, or is no video or audio file.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f'{path}: no such video file')
    av = import_av()
    try:
        # FFmpeg would read a colon in a relative name as a protocol. Files must not make it open network addresses.
        container = av.open(str(path.resolve()), metadata_errors='replace', options={'protocol_whitelist': 'file'})
    except av.FFmpegError as error:
        raise DataError(
            f'{path}: expected a video, cannot read it ({error.strerror or error}). Is the file complete, and a video?'
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
    """Seconds of one tick of the timestamps; FFmpeg's own tick if the stream or frame has none."""
    return timed.time_base or MICROSECOND


def _start(packet: 'av.Packet') -> Fraction:
    """When a packet begins, in seconds; zero if it has no timestamp."""
    return (packet.pts or 0) * packet.time_base


def _origin(container: 'av.container.InputContainer') -> Fraction:
    """The time of the file, in seconds, that becomes zero."""
    start = container.start_time or 0
    return start * MICROSECOND if start < 0 or container.format.name in UNANCHORED else Fraction(0)


def _display_matrix(frame: 'av.VideoFrame') -> tuple[int, int, int, int]:
    """The matrix (a, b, c, d) that shows a frame: pixel (x, y) goes to (a x + c y, b x + d y), up to a shift."""
    data = frame.side_data.get('DISPLAYMATRIX')
    if data is None:
        return 1, 0, 0, 1
    # PyAV's type stubs declare this side data as a plain object.
    a, b, _, c, d = struct.unpack_from('=5i', bytes(data))  # type: ignore[call-overload]
    return a, b, c, d


def _checksum(image: np.ndarray) -> int:
    return zlib.crc32(image.data)


def _is_on_its_side(matrix: tuple[int, int, int, int]) -> bool:
    a, b, _, _ = matrix
    return abs(b) > abs(a)


def _turn(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Rotate and mirror an image [h, w, 3] by the quarter turns nearest to a display matrix."""
    a, b, c, d = matrix
    if _is_on_its_side(matrix):
        image, across, down = image.swapaxes(0, 1), c, b
    else:
        across, down = a, d
    return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])
