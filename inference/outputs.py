"""Writes the results of a run in the background, and checks that its output folder holds no results of another run."""

import json
import logging
import zipfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from PIL import Image

from dataset.io import some, write_binary_mask, write_mask
from inference.video_file import VideoWriter
from util.errors import DataError
from util.files import atomic_path, check_writable
from util.stop import Stopped

if TYPE_CHECKING:
    from torch import Tensor

    from inference.stream import Passed, Segmented

log = logging.getLogger(__name__)

WRITERS = 2  # threads that encode files
SETTINGS_FILE = 'settings.json'
OLDER_SETTINGS_FILES = ('segment_video.json',)
PROBABILITIES = 'probabilities'
UNFINISHED = '.unfinished'  # folder in the output folder with the state from which a killed run is continued
STRIP_HEIGHT = 240
STRIP_GAP = 4


class Output(ABC):
    """A kind of result that is written for every wanted frame. At most ``behind`` frames wait to be written.

    It is a context manager, so that it can act before the first frame and after the last one.
    """

    behind = 8

    @abstractmethod
    def job(self, frame: 'Segmented') -> Callable[[], None] | None:
        """A function that writes the frame in a thread, or ``None``. It keeps only what it needs of the frame."""

    def state(self) -> object:
        """What was collected over the frames, for a continued run: numbers, strings, lists and dictionaries."""
        return None

    def restore(self, state: Any) -> None:  # noqa: B027 most have nothing to do
        """Continue with the ``state()`` of an earlier run."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:  # noqa: B027 most have nothing to do
        pass


class FilePerFrame(Output):
    """Writes one file for every wanted frame: ``folder/NAME`` with ``suffix``."""

    suffix: str

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / f'{name}{self.suffix}'


class Masks(FilePerFrame):
    """Palette PNGs with the labels, ``folder/NAME.png``; with ``binary``, grayscale PNGs of 0 and 255."""

    behind = 32
    suffix = '.png'

    def __init__(self, folder: Path, *, binary: bool = False):
        super().__init__(folder)
        self.binary = binary

    def job(self, frame: 'Segmented') -> Callable[[], None]:
        return partial(self.write, self.path(frame.name), frame.labels)

    def write(self, path: Path, labels: 'Tensor') -> None:
        (write_binary_mask if self.binary else write_mask)(path, labels.cpu().numpy())


class Probabilities(FilePerFrame):
    """``folder/NAME.npz`` with ``prob [1 + K, H, W]`` in float16, the background first, and ``objects [K]``."""

    behind = 4  # the files are large and slow to write
    suffix = '.npz'

    def job(self, frame: 'Segmented') -> Callable[[], None]:
        return partial(self.write, self.path(frame.name), frame.prob.half(), frame.objects)

    @staticmethod
    def write(path: Path, prob: 'Tensor', objects: list[int]) -> None:
        with atomic_path(path) as temporary, open(temporary, 'wb') as file:
            np.savez_compressed(file, prob=prob.cpu().numpy(), objects=np.array(objects, np.uint8))


class Cutouts(Output):
    """Each object alone on a transparent background, ``folder/LABEL/NAME.png``."""

    def __init__(self, folder: Path):
        self.folder = folder

    def job(self, frame: 'Segmented') -> Callable[[], None]:
        return partial(self.write, frame.name, frame.image, frame.labels, frame.objects)

    def write(self, name: str, image: np.ndarray, labels: 'Tensor', objects: list[int]) -> None:
        of_pixels = labels.cpu().numpy()
        for label in objects:
            alpha = np.where(of_pixels == label, np.uint8(255), np.uint8(0))[..., None]
            with atomic_path(self.folder / str(label) / f'{name}.png') as temporary:
                Image.fromarray(np.concatenate([image & alpha, alpha], axis=2)).save(
                    temporary, format='PNG', compress_level=2
                )


class Redrawn(NamedTuple):
    """A frame that was segmented earlier, with the mask from its file."""

    number: int
    image: np.ndarray  # uint8 [H, W, 3] RGB
    pts: int
    labels: 'Tensor'  # uint8 [H, W]


class Pictures(Output):
    """Shows the objects on the frames: in an overlay video and in a strip of stills, each of which may be ``None``.

    The files appear at the end of the ``with`` block; after an exception there are none.
    """

    def __init__(self, video: VideoWriter | None, strip: 'Strip | None'):
        self.video = video
        self.strip = strip

    def __enter__(self) -> Self:
        if self.video is not None:
            self.video.__enter__()
        return self

    def job(self, frame: 'Segmented | Redrawn') -> Callable[[], None] | None:
        strip = self.strip if self.strip is not None and self.strip.takes(frame.number) else None
        if self.video is None and strip is None:
            return None
        return partial(self.write, frame.number, frame.image, frame.labels, frame.pts, strip)

    def write(self, number: int, image: np.ndarray, labels: 'Tensor', pts: int, strip: 'Strip | None') -> None:
        from dataset.overlay import draw_masks  # --help must not wait for it

        image = draw_masks(image, labels.cpu().numpy())
        if self.video is not None:
            self.video.write(image, pts)
        if strip is not None:
            strip.add(number, image)

    def __exit__(self, *error) -> None:
        if self.video is not None:
            self.video.__exit__(*error)
        if self.strip is not None and error[0] is None:
            self.strip.write()


class Strip:
    """Collects ``count`` pictures at even distances from a video of unknown length.

    It keeps every ``every``-th frame. When there are many, it drops every second one and doubles ``every``.
    """

    def __init__(self, path: Path, count: int):
        self.path = path
        self.count = count
        self.every = 1
        self.kept: dict[int, np.ndarray] = {}

    def takes(self, number: int) -> bool:
        """Whether the frame of this number may be kept."""
        return number % self.every == 0

    def add(self, number: int, image: np.ndarray) -> None:
        """Add the picture ``[H, W, 3]`` of a frame. It is left out if fewer are kept since :meth:`takes` was asked."""
        import cv2

        if not self.takes(number):
            return
        H, W = image.shape[:2]
        shape = max(1, round(W * STRIP_HEIGHT / H)), STRIP_HEIGHT
        self.kept[number] = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
        if len(self.kept) > 8 * self.count:
            self.every *= 2
            self.kept = {each: picture for each, picture in self.kept.items() if self.takes(each)}

    def write(self) -> None:
        if not self.kept:
            return
        kept = list(self.kept.values())
        chosen = np.linspace(0, len(kept) - 1, min(self.count, len(kept))).round().astype(int)
        gap = np.full((STRIP_HEIGHT, STRIP_GAP, 3), 255, np.uint8)
        parts = [part for index in chosen for part in (gap, kept[index])][1:]
        with atomic_path(self.path) as temporary:
            Image.fromarray(np.concatenate(parts, axis=1)).save(temporary, format='PNG')


class Outputs:
    """Writes all results of the frames in background threads. Their errors are raised at the next frame or at the end.

    Args:
        files: results that may be written in any order of the frames.
        pictures: results that need the frames in order.
    """

    def __init__(self, files: Sequence[Output], pictures: Pictures | None = None):
        self.files = files
        self.pictures = pictures

    def __enter__(self) -> 'Outputs':
        with ExitStack() as stack:
            if self.pictures is not None:
                stack.enter_context(self.pictures)
                self._in_order = stack.enter_context(BackgroundWriter(self.pictures.behind, threads=1))
            for each in self.files:
                stack.enter_context(each)
            self._in_any_order = stack.enter_context(BackgroundWriter(min(each.behind for each in self.files)))
            self._stack = stack.pop_all()
        return self

    def write(self, frame: 'Segmented | Passed', *, in_order: bool = True) -> None:
        """Write a frame if it is wanted. Pictures are left out if the frames do not come in order."""
        if not frame.wanted:
            return
        for output in self.files:
            if job := output.job(frame):
                self._in_any_order.submit(job)
        if in_order:
            self.draw(frame)

    def draw(self, frame: 'Segmented | Redrawn') -> None:
        """Write only the pictures of a frame."""
        if self.pictures is not None and (job := self.pictures.job(frame)):
            self._in_order.submit(job)

    @property
    def draws(self) -> bool:
        """Whether there are pictures."""
        return self.pictures is not None and (self.pictures.video is not None or self.pictures.strip is not None)

    @property
    def masks(self) -> Masks:
        """The output that writes the masks."""
        return next(each for each in self.files if isinstance(each, Masks))

    def flush(self) -> None:
        """Wait until all files are written."""
        self._in_any_order.flush()

    def __exit__(self, *error) -> bool | None:
        return self._stack.__exit__(*error)


class BackgroundWriter:
    """Encodes and writes files in background threads. Errors are raised at the next ``submit`` or at the end.

    At most ``limit`` files wait to be written. With one thread, they are written in the order of ``submit``.
    """

    def __init__(self, limit: int, *, threads: int = WRITERS):
        self.limit = limit
        self.pool = ThreadPoolExecutor(threads)
        self.pending: deque[Future] = deque()

    def __enter__(self) -> 'BackgroundWriter':
        return self

    def submit(self, write: Callable[..., None], *args: object) -> None:
        """Call ``write(*args)`` in the background. It fetches tensors from the GPU, so the caller does not wait."""
        while self.pending and (len(self.pending) >= self.limit or self.pending[0].done()):
            self.pending.popleft().result()
        self.pending.append(self.pool.submit(write, *args))

    def flush(self) -> None:
        """Wait until everything submitted is written. Raises the error of a failed write."""
        while self.pending:
            self.pending.popleft().result()

    def __exit__(self, error_type, *_) -> None:
        # After a stop the waiting files are still written: they may complete a video.
        self.pool.shutdown(cancel_futures=error_type not in (None, Stopped))
        if error_type is None:
            for future in self.pending:
                future.result()


def archive_of(folder: Path) -> Path:
    """The path of an output folder's archive, which is beside the folder."""
    folder = folder.resolve()
    return folder.with_name(f'{folder.name}.zip')


def write_archive(path: Path, masks: Masks, names: Iterable[str]) -> None:
    """Write a zip of masks for a server: ``<video>/<frame>.png`` (DAVIS), or the same below ``Annotations``."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, 'w') as archive:
        for file in map(masks.path, names):
            # Without time stamps, equal masks give equal archives. PNGs are not compressed again.
            archive.writestr(zipfile.ZipInfo(str(file.relative_to(masks.folder))), file.read_bytes())


class OutputError(DataError):
    """The output folder cannot be used."""


def replaceable(problem: str) -> OutputError:
    """The error for a folder with an earlier run's results, which may be deleted."""
    return OutputError(f'{problem}; overwrite them or choose another place', options=['overwrite', 'output'])


def claim(
    folder: Path,
    settings: Mapping[str, object],
    *,
    places: Iterable[Path],
    inputs: Iterable[Path],
    files: Callable[[], Iterable[Path]],
    overwrite: bool,
    resume: bool = False,
    archive: Path | None = None,
) -> None:
    """Take an output folder for this run, or refuse if it holds ground truth or the results of another run.

    ``settings`` are written to ``folder/settings.json`` for the next run to compare. Their entry ``files`` says what
    is in files that the run reads: path -> hash. Folders of earlier versions lack it; there it is not compared.

    Args:
        places: the folders and files that the run writes.
        inputs: the files and folders that the run reads; none of them may be in ``places``, or be ``folder``.
        files: finds the files of an earlier run that would be mistaken for results of this run.
        overwrite: delete those files.
        resume: keep those files if they were made with the same settings. Without it, any such file is an error.
        archive: a further file that the run writes at the end, beside the folder.

    Raises:
        OutputError: the folder holds other files or the results of another run.
        OSError: the folder cannot be written.
    """
    taken = {place.resolve() for place in places}
    for path in sorted({path.resolve() for path in inputs}):
        # A picture beside the frames would be a frame of the next run. A single input file may lie in the folder.
        if path == folder.resolve() or taken & {path, *path.parents}:
            raise OutputError(
                f'{path}: the run reads this and would also write there; choose another place for the output',
                options=['output'],
            )
    record = folder / SETTINGS_FILE
    recorded = any((folder / name).exists() for name in (SETTINGS_FILE, *OLDER_SETTINGS_FILES))
    found = sorted(files()) if overwrite or not resume else []
    if resume and not overwrite:
        _check_settings(record, settings)
    elif found and not overwrite:
        raise replaceable(f'{folder}: has results already ({found[0]})')
    elif found and not recorded:
        raise OutputError(
            f'{found[0]}: exists, but {folder} has no {SETTINGS_FILE}, which every run writes. Nothing is deleted, '
            'since these files may not come from a run; choose another place for the output',
            options=['output'],
        )
    check_writable(record)
    if archive is not None:
        check_writable(archive)
    if overwrite:
        # All are deleted now, so that an interrupted run leaves no results of the run before.
        for path in found:
            path.unlink()
        for name in OLDER_SETTINGS_FILES:
            (folder / name).unlink(missing_ok=True)
        if archive is not None:
            archive.unlink(missing_ok=True)
    with atomic_path(record) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + '\n')


def _check_settings(record: Path, settings: Mapping[str, object]) -> None:
    """Refuse a folder whose files were not made by a run with these settings."""
    folder = record.parent
    try:
        found = json.loads(record.read_text())
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_dir() and any(not entry.name.startswith('.') for entry in folder.iterdir()):
            raise OutputError(
                f'{folder}: expected an empty folder or one with the {SETTINGS_FILE} of an earlier run, found other '
                'files; choose another place for the output',
                options=['output'],
            ) from None
        return
    except ValueError as error:
        raise replaceable(f'{record}: no readable JSON ({error})') from error
    if not isinstance(found, dict):
        raise replaceable(f'{record}: expected settings, found {found!r}')
    if 'exact' in settings:
        found.setdefault('exact', True)  # older versions did not write it, and always were exact
    before, files = found.pop('files', None), settings.get('files')
    changes = [
        f'{name} was {_brief(found.get(name))}, is {_brief(settings.get(name))}'
        for name in sorted({*found, *settings} - {'files'})
        if found.get(name) != settings.get(name)
    ]
    if isinstance(files, dict) and isinstance(before, dict):
        # Where other settings differ, too, they say which files are new.
        names = {*before} & {*files} if changes else {*before} | {*files}
        if edited := [name for name in sorted(names) if before.get(name) != files.get(name)]:
            changes.insert(0, f'changed since then: {some(edited)}')
    elif files and not changes:
        log.info('%s: an earlier version wrote it, and did not note what was in the masks; not compared', record)
    if changes:
        raise replaceable(f'{folder}: holds masks of other settings ({"; ".join(changes)})')


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f'{text[:200]} ...'
