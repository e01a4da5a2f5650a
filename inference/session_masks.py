"""Imports masks of other tools into a session, and saves and restores a session as a zip."""

import json
import logging
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dataset.io import DataError, check_name, image_size, list_frames, read_mask, some
from dataset.mask_files import MASK_SUFFIXES, MAX_LABEL, GivenMask, match_masks
from dataset.user_masks import MASK_FORMATS, UserMasks
from inference.clip import STORE_FACTOR, LimitError, Upload, check_pixels
from inference.session import Session
from util.files import atomic_path

log = logging.getLogger(__name__)

RECORD = 'session.json'
MAX_NAME = 40  # characters of an object's name
MAX_RECORD = 2**24  # bytes


class Record(NamedTuple):
    """The content of ``session.json`` in a session's zip. Frames are identified by their names."""

    painted: list[str]
    objects: dict[int, str]
    confidence: dict[str, dict[int, float]]


def object_name(text: str) -> str:
    """Reduce a text to an object's name: one line of at most ``MAX_NAME`` characters."""
    return ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())[:MAX_NAME]


def write_masks(session: Session, path: str | Path) -> int:
    """Write a zip with a palette PNG for every frame that has a mask, named like the frame. Returns their number.

    The zip also has a file ``session.json``, which says which masks are painted, what the objects are called, and how
    sure the network was, so that :func:`import_masks` can restore the session.

    Raises:
        DataError: there are no masks.
    """
    frames = session.masked()
    if not frames:
        raise DataError('There are no masks yet. Paint an object and propagate.')
    names = {frame: session.mask_path(frame).stem for frame in frames}
    record = Record(
        [names[frame] for frame in sorted(session.painted)],
        dict(sorted(session.names.items())),
        {names[frame]: session.confidence[frame] for frame in frames if frame in session.confidence},
    )
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, 'w') as archive:
        # Without time stamps, equal masks give equal archives. PNGs are not compressed again.
        for frame in frames:
            mask = session.mask_path(frame)
            archive.writestr(zipfile.ZipInfo(mask.name), mask.read_bytes())
        archive.writestr(zipfile.ZipInfo(RECORD), json.dumps(record._asdict(), indent=1))
    return len(frames)


def import_masks(session: Session, files: Sequence[Path], frame: int, *, max_bytes: int) -> list[int]:
    """Import masks from files as painted masks. The import is one change for :meth:`Session.undo`.

    A file that is named like a frame is the mask of that frame. If no file is, all are masks of ``frame``, and if
    there are several, each of them is one object. A zip holds such files, or one folder of them for each object. How
    the pixels of a file are understood is described at :class:`dataset.user_masks.UserMasks`. The zip of a session
    (:func:`write_masks`) replaces everything in this session.

    Args:
        files: the uploaded files: one zip, or masks. They are moved.
        max_bytes: largest size of an upload; the content of a zip may take ten times that on disk.

    Returns:
        The frames whose masks were imported.

    Raises:
        DataError: the files cannot be used. The session is unchanged.
    """
    folder = session.folder / 'import'
    shutil.rmtree(folder, ignore_errors=True)
    (folder / 'masks').mkdir(parents=True)
    try:
        moved = [_move(path, folder) for path in files]
        zips = [path for path in moved if path.suffix.lower() == '.zip']
        if zips and len(moved) > 1:
            raise DataError(f'expected one zip, or masks, found {some([path.name for path in moved])}')
        record = _unzip(zips[0], folder, STORE_FACTOR * max_bytes) if zips else None
        if not zips:
            for path in moved:
                path.rename(folder / 'masks' / path.name)
        title = moved[0].name if len(moved) == 1 else f'{len(moved)} masks'
        with _as_before(session):
            if record is not None:
                return _restore(session, folder / 'masks', record)
            return _paint(session, folder / 'masks', frame, title)
    except DataError as error:  # the temporary folder in a path would only confuse the reader
        raise DataError(str(error).replace(f'{folder / "masks"}/', '').replace(f'{folder}/', '')) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(path: Path, folder: Path) -> Path:
    target = folder / check_name(path.name, 'upload')
    if target.exists():
        raise DataError(f'two files are called {path.name}')
    return Path(shutil.move(path, target))


def _unzip(path: Path, folder: Path, limit: int) -> Record | None:
    """Put the masks of a zip into ``folder/masks``, in a folder for each object if the zip has several folders.

    Returns the session's record, or ``None`` if the zip has none.
    """
    record = None
    target = folder / 'masks'
    with Upload(path, 'masks', (*MASK_SUFFIXES, '.json')) as upload:
        records = [entry for name, entry in upload.entries if name.name == RECORD]
        masks = [(name, entry) for name, entry in upload.entries if name.suffix.lower() in MASK_SUFFIXES]
        others = upload.others + [
            name.name for name, _ in upload.entries if name.suffix == '.json' and name.name != RECORD
        ]
        if others:
            log.warning('%s: left out entries other than %s: %s', path.name, ' '.join(MASK_SUFFIXES), some(others))
        if not masks:
            raise DataError(f'{path.name}: no masks in it ({" ".join(MASK_SUFFIXES)})')
        for entry in records[:1]:
            record = _read_record(upload, entry, folder / RECORD)
        several = len({name.parent for name, _ in masks}) > 1
        for name, entry in masks:
            if several and not name.parent.name:
                raise DataError(f'{path.name}: expected one folder of masks, or one for each object, found both')
            place = target / check_name(name.parent.name, path.name) if several else target
            place.mkdir(exist_ok=True)
            file = place / check_name(name.name, path.name)
            if file.exists():
                raise DataError(
                    f'{path.name}: two masks are called {name.name}. Put only one folder of masks into the zip.'
                )
            limit = upload.unpack(entry, file, limit)
    return record


def _paint(session: Session, folder: Path, frame: int, title: str) -> list[int]:
    """Take masks of other tools as painted masks."""
    for path in folder.rglob('*'):
        if path.is_file():
            check_pixels(path.name, *image_size(path, formats=MASK_FORMATS)[::-1])
    names = [path.stem for path in session.clip.frames]
    files = list_frames(folder, suffixes=MASK_SUFFIXES)
    named = {path.stem for path in files} & set(names)
    if named and (strangers := [path.name for path in files if path.stem not in named]):
        raise DataError(
            f'expected all masks to be named like frames ({some(names)}), or none of them, '
            f'found no frame for {some(strangers)}'
        )
    if named:
        given = [GivenMask((path,)) for path in files]
    else:
        given = [GivenMask(tuple(files), frame=frame) if files else GivenMask((folder,))]
    masks = UserMasks(
        match_masks(given, names), size_hw=session.shape, pixel_aspect=float(session.clip.pixel_aspect), name=title
    )
    with session.change('importing masks'):
        # Masks with objects come first, since an empty mask is only allowed when objects are known.
        for number in sorted(masks.given, key=lambda number: not masks.objects[number]):
            labels = masks.read(number, session.shape)
            assert labels is not None  # the mask of this frame is given
            session.paint(number, labels)
        for each in masks.given.values():
            for path, label in each.pairs:
                name = path.stem if path.parent == folder else path.parent.name
                if label is not None and label in session.names and not name.isdecimal():
                    session.names[label] = session.names[label] or object_name(name)
    return sorted(masks.given)


def _restore(session: Session, folder: Path, record: Record) -> list[int]:
    """Restore a session from the content of its zip."""
    numbers = {path.stem: number for number, path in enumerate(session.clip.frames)}
    files = {path.stem: path for path in list_frames(folder, suffixes=MASK_SUFFIXES)}
    if strangers := sorted(files.keys() - numbers.keys()):
        raise DataError(
            f'expected the masks of this clip, found no frames for {some(strangers)}. Is this the zip of another clip?'
        )
    if absent := sorted({*record.painted, *record.confidence} - files.keys()):
        raise DataError(f'{RECORD}: lists frames without a mask: {some(absent)}')
    with session.change('importing a session'):
        session.clear()
        for name, path in files.items():
            check_pixels(path.name, *image_size(path)[::-1])
            labels = read_mask(path)
            if labels.shape != session.shape:
                height, width = session.shape
                found = f'{labels.shape[1]} x {labels.shape[0]}'
                raise DataError(f'{path.name}: expected the size of the clip, {width} x {height}, found {found}')
            session.restore(
                numbers[name], labels, painted=name in record.painted, confidence=record.confidence.get(name)
            )
        session.names.update(record.objects)
    return sorted(numbers[name] for name in files)


def _read_record(upload: Upload, entry: zipfile.ZipInfo, target: Path) -> Record:
    """Read the record of a session from an uploaded zip, whose content is not trusted."""
    try:
        upload.unpack(entry, target, MAX_RECORD)
        found: Any = json.loads(target.read_text(encoding='utf-8'))
        record = Record(**found)
        record = Record(
            [str(name) for name in record.painted],
            {int(label): object_name(str(name)) for label, name in record.objects.items()},
            {
                str(name): {int(label): float(value) for label, value in sure.items()}
                for name, sure in record.confidence.items()
            },
        )
        values = [value for sure in record.confidence.values() for value in sure.values()]
        if all(1 <= label <= MAX_LABEL for label in record.objects) and all(0 <= value <= 1 for value in values):
            return record
        found = 'values out of their range'
    except (LimitError, ValueError, TypeError, AttributeError, RecursionError) as error:
        found = type(error).__name__
    raise DataError(
        f'{RECORD}: expected the record of a session, found something else ({found}). Remove it from the zip.'
    )


@contextmanager
def _as_before(session: Session) -> Iterator[None]:
    """Undo the changes that the block made if it ends with an error."""
    before = session.undone.count
    try:
        yield
    except BaseException:
        if session.undone.count > before:
            session.undo()
        raise
