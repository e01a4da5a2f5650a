"""Averages the probabilities that several runs have saved: an ensemble whose networks ran one after the other."""

import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from dataset.io import some, write_binary_mask, write_mask
from inference.outputs import (
    PROBABILITIES,
    SETTINGS_FILE,
    BackgroundWriter,
    Masks,
    Probabilities,
    archive_of,
    claim,
    write_archive,
)
from util.errors import DataError, foreign_call

log = logging.getLogger(__name__)

WAITING = 4  # largest number of frames merged at a time; each needs memory for a sum and for a run's probabilities


@dataclass(frozen=True)
class Result:
    """The output folder of a run that saved its probabilities."""

    folder: Path
    settings: dict  # the content of its settings.json
    frames: tuple[str, ...]  # names of the form <video>/<frame>, sorted

    @classmethod
    def of(cls, folder: Path) -> 'Result':
        """Read an output folder. Raises ``DataError`` if probabilities or the run's settings are missing."""
        record, probabilities = folder / SETTINGS_FILE, folder / PROBABILITIES
        try:
            settings = json.loads(record.read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            raise DataError(f'{record}: expected the settings of a run, cannot read it ({error})') from error
        if not isinstance(settings, dict):
            raise DataError(f'{record}: expected settings, found {settings!r}')
        suffix = Probabilities.suffix
        paths = [path.relative_to(probabilities) for path in probabilities.rglob(f'*{suffix}')]
        if not paths:
            raise DataError(
                f'{probabilities}: expected <video>/<frame>{suffix}, found none. Did the run save probabilities?'
            )
        return cls(folder, settings, tuple(sorted(path.with_suffix('').as_posix() for path in paths)))

    def path(self, frame: str) -> Path:
        return Probabilities(self.folder / PROBABILITIES).path(frame)


class Content(NamedTuple):
    """The size and the objects of the probabilities in a file."""

    size: tuple[int, int]  # H, W
    objects: tuple[int, ...]  # labels, in the order of the channels


def merge(folders: Sequence[Path], output: Path, *, overwrite: bool = False, archive: bool = False) -> int:
    """Average the probabilities of several runs and write the masks, in the format of the runs' own masks.

    Every run has the same weight. Each run has filled its memory from its own probabilities, as each core of an
    :class:`inference.ensemble.Ensemble` does. The mean is therefore that of the ensemble, except that the files are
    rounded to float16. Frames that already have a mask are skipped.

    Args:
        folders: the output folders of the runs, which must have the same frames, objects and sizes.
        output: where the masks go, as ``output/<video>/<frame>.png``.
        overwrite: merge finished frames again.
        archive: at the end, put the masks into ``output.zip``.

    Returns:
        How many frames were merged.

    Raises:
        DataError: the runs differ in frames, objects, sizes or data set, or a file cannot be read.
        OutputError: ``output`` holds the masks of other settings and ``overwrite`` is false.
        OSError: a mask cannot be written.
    """
    output = output.resolve()
    results = [Result.of(folder.resolve()) for folder in folders]
    check_alike(results)
    frames = results[0].frames
    settings = merged_settings(results)
    masks = Masks(output, binary='format' in settings)
    archive_path = archive_of(output) if archive else None
    videos = sorted({output / Path(frame).parent for frame in frames})
    claim(
        output,
        settings,
        places=[output],
        inputs=[result.folder for result in results],
        files=lambda: [path for video in videos for path in video.glob(f'*{masks.suffix}')],
        overwrite=overwrite,
        resume=True,
        archive=archive_path,
    )
    left = [frame for frame in frames if not masks.path(frame).exists()]
    if len(left) < len(frames):
        log.info('%d of %d frames were merged before', len(frames) - len(left), len(frames))
    with BackgroundWriter(WAITING) as writer:
        for frame in tqdm(left, unit='frame', disable=None):
            writer.submit(_merge_frame, [result.path(frame) for result in results], masks.path(frame), masks.binary)
    if archive_path is not None:
        write_archive(archive_path, masks, frames)
        log.info('archive: %s', archive_path)
    return len(left)


def check_alike(results: Sequence[Result]) -> None:
    """Raise a ``DataError`` unless the runs have the same frames, objects and sizes. Reads only the files' headers."""
    first = results[0]
    folders = [result.folder for result in results]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise DataError(f'{twice}: expected every run once, found it twice')
    for other in results[1:]:
        for has, lacks in ((first, other), (other, first)):
            if missing := sorted({*has.frames} - {*lacks.frames}):
                raise DataError(
                    f'{lacks.folder / PROBABILITIES}: expected the {len(has.frames)} frames of {has.folder}, '
                    f'{len(missing)} are missing: {some(missing)}'
                )
        for name in ('format', 'given'):
            if first.settings.get(name) != other.settings.get(name):
                raise DataError(
                    f'{other.folder / SETTINGS_FILE}: expected a run on the same dataset as '
                    f'{first.folder}, found another "{name}"'
                )
    for frame in first.frames:
        expected = read_content(first.path(frame))
        for other in results[1:]:
            found = read_content(other.path(frame))
            if found != expected:
                raise DataError(
                    f'{other.path(frame)}: expected {_words(expected)} as in {first.path(frame)}, '
                    f'found {_words(found)}'
                )


def merged_settings(results: Sequence[Result]) -> dict[str, object]:
    """The settings of the merged result: a list of the runs' settings, and once those of the dataset."""
    shared = {name: results[0].settings[name] for name in ('format', 'given') if name in results[0].settings}
    runs = [{name: value for name, value in each.settings.items() if name not in shared} for each in results]
    return {'merged': runs} | shared


def read_content(path: Path) -> Content:
    """Read objects and size from a file, without the probabilities. Raises ``DataError`` if it cannot be read."""
    with _reading(path), zipfile.ZipFile(path) as file:
        with file.open('objects.npy') as member:
            objects = np.lib.format.read_array(member, allow_pickle=False)
        with file.open('prob.npy') as member:
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape = read_header[np.lib.format.read_magic(member)](member)[0]
        if objects.ndim != 1 or len(shape) != 3 or shape[0] != 1 + len(objects):
            raise ValueError(f'prob {list(shape)} and objects {list(objects.shape)}')
        return Content((shape[1], shape[2]), tuple(objects.tolist()))


def read_probabilities(path: Path) -> np.ndarray:
    """Read probabilities ``[1 + K, H, W]``. Raises ``DataError`` if the file cannot be read."""
    with _reading(path), np.load(path, allow_pickle=False) as arrays:
        return arrays['prob']


def _reading(path: Path):
    return foreign_call(
        DataError,
        f'{path}: expected prob [1 + K, H, W] and objects [K], cannot read them',
        '. Delete the file and repeat the run that wrote it.',
    )


def _merge_frame(paths: Sequence[Path], output: Path, binary: bool) -> None:
    """Write the label with the largest mean for each pixel, which is also the label with the largest sum."""
    total = read_probabilities(paths[0]).astype(np.float32)
    for path in paths[1:]:
        total += read_probabilities(path)
    labels = np.array([0, *read_content(paths[0]).objects], np.uint8)[total.argmax(axis=0)]
    (write_binary_mask if binary else write_mask)(output, labels)


def _words(content: Content) -> str:
    height, width = content.size
    return f'{width} x {height} pixels with the objects {some(content.objects) or "none"}'
