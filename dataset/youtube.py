"""YouTubeVOS 2018 and 2019, as downloaded.

``ROOT/<split>/{Annotations,meta.json}`` and the frames at the full rate in
``ROOT/all_frames/<split>_all_frames/JPEGImages``.
"""

import json
import logging
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dataset.io import DataError, check_name, list_frames, natural_key, read_mask, some
from dataset.sequence import Frame, GroundTruth, Video
from util.metrics import labels_in

log = logging.getLogger(__name__)


def youtube(root: str | Path, *, split: str = 'valid', output_all: bool = False) -> list[Video]:
    """The videos of a split. Each object is to be segmented from its first annotation on.

    An object's annotation is that of the first frame that ``meta.json`` lists for it; later ones, which training
    videos have, are not read. An object that this annotation does not show begins at the first annotation that shows
    it, with a warning. The segmentation is asked for in the frames that are listed for any object of the video, or
    with ``output_all`` in all frames, from the first annotated one on.

    Raises:
        DataError: for missing folders, frames or annotations, and for a ``meta.json`` of another form.
    """
    base = Path(root) / split
    images = Path(root) / 'all_frames' / f'{split}_all_frames' / 'JPEGImages'
    for folder in (base / 'Annotations', images):
        if not folder.is_dir():
            raise DataError(
                f'{folder}: missing; YouTubeVOS needs the annotations and meta.json in {base} and the '
                f'frames of the all-frames download in {images}. docs/data.md says how to get them.'
            )
    videos = []
    for name, first_frames, listed, _ in _read_meta(base / 'meta.json')[0]:
        by_name = {path.stem: path for path in list_frames(images / name)}
        missing = [frame for frame in listed if frame not in by_name]
        if missing:
            missing.sort(key=natural_key)
            raise DataError(f'{images / name}: frames that meta.json lists are missing: {some(missing)}')
        first_frames = _first_masks(base / 'Annotations' / name, first_frames, list(by_name))
        order = {frame: position for position, frame in enumerate(by_name)}
        begin = min(order[frame] for frame in first_frames.values())
        wanted = by_name if output_all else listed
        frames = []
        for frame, path in by_name.items():
            objects = tuple(label for label, first in first_frames.items() if first == frame)
            mask = base / 'Annotations' / name / f'{frame}.png' if objects else None
            if mask is not None and not mask.is_file():
                raise DataError(f'{mask}: the annotation of objects {objects} is missing')
            frames.append(
                Frame(
                    frame, path, mask=mask, objects=objects or None, wanted=order[frame] >= begin and frame in wanted
                )
            )
        videos.append(Video(name, f'Annotations/{name}', tuple(frames)))
    return videos


def _first_masks(folder: Path, first_frames: dict[int, str], frames: list[str]) -> dict[int, str]:
    """The first frame of every object: the one that ``meta.json`` lists, or else the first one whose mask shows it."""

    @cache
    def labels(frame: str) -> list[int]:
        path = folder / f'{frame}.png'
        with suppress(DataError):  # a mask that cannot be read is an error when its video is segmented
            return labels_in(read_mask(path)) if path.is_file() else []
        return list(first_frames)

    found = dict(first_frames)
    for label, listed in first_frames.items():
        if label in labels(listed):
            continue
        there = (folder / f'{listed}.png').is_file()
        shown = next((frame for frame in frames if label in labels(frame)), None)
        if shown is not None:
            found[label] = shown
            log.warning('%s: object %d begins at %s, where its mask is, not at %s', folder, label, shown, listed)
        elif there:
            log.warning('%s: no mask shows object %d, which meta.json lists from %s on', folder, label, listed)
    return found


class Groups(NamedTuple):
    """The categories that training has seen and those that it has not seen, as ``meta.json`` may list them.

    A list that the file does not have is ``None``, and stands for all categories that the other list does not have.
    """

    seen: list[str] | None
    unseen: list[str] | None

    def of(self, category: str) -> str:
        """``'seen'`` or ``'unseen'``. Raises :class:`DataError` for a category that neither list has."""
        if self.seen is not None and self.unseen is not None and category not in [*self.seen, *self.unseen]:
            raise DataError(
                f'meta.json: the category {category!r} is neither in "seen" nor in "unseen". Add it to one of them.'
            )
        known = category in self.seen if self.seen is not None else category not in (self.unseen or ())
        return 'seen' if known else 'unseen'


def youtube_truth(root: str | Path, *, split: str = 'valid') -> tuple[list[GroundTruth], Groups | None]:
    """The ground truth of the videos of a split: all frames that ``meta.json`` lists for any object of the video.

    Returns:
        The videos, and which categories are seen and unseen, if ``meta.json`` says it.

    Raises:
        DataError: a ground-truth mask is missing, or ``meta.json`` has another form.
    """
    base = Path(root) / split
    base = base if base.is_dir() else Path(root)
    listed, meta = _read_meta(base / 'meta.json')
    videos, missing = [], []
    for video in listed:
        masks = [base / 'Annotations' / video.name / f'{frame}.png' for frame in sorted(video.listed, key=natural_key)]
        missing += [path for path in masks if not path.is_file()]
        if not missing:
            truth = GroundTruth(video.name, tuple(masks), categories=video.categories)
            videos.append(truth.from_first_object())
    if missing:
        raise DataError(
            f'{base}: expected ground truth for every frame in meta.json, found none for {len(missing)} frames '
            f'({missing[0]} ...). The public validation set has masks of the first frames only; score training videos '
            'that were held out instead.'
        )
    groups = Groups(meta.get('seen'), meta.get('unseen'))
    return videos, None if groups == (None, None) else groups


class _Listed(NamedTuple):
    """A video as ``meta.json`` has it."""

    name: str
    first_frames: dict[int, str]  # of every object
    listed: set[str]  # the frames of all objects
    categories: dict[int, str]  # of the objects


def _read_meta(path: Path) -> tuple[list[_Listed], dict[str, Any]]:
    """Read ``meta.json``: its videos, sorted by name, and its whole content."""
    try:
        meta = json.loads(path.read_text(encoding='utf-8-sig'), object_pairs_hook=_once)
        videos = meta['videos']
        found = []
        for name, video in sorted(videos.items()):
            listed = {
                int(label): _names(thing['frames'])
                for label, thing in sorted(video['objects'].items(), key=lambda item: int(item[0]))
            }
            if (
                not listed
                or len(listed) < len(video['objects'])
                or not all(listed.values())
                or not all(0 < label < 256 for label in listed)
            ):
                raise DataError(
                    f'{path}: video {name!r}: expected objects 1 to 255, each once and with at '
                    f'least one frame, found {listed}'
                )
            found.append(
                _Listed(
                    check_name(name, path),
                    {label: min(frames, key=natural_key) for label, frames in listed.items()},
                    {frame for frames in listed.values() for frame in frames},
                    {int(label): thing.get('category', '') for label, thing in video['objects'].items()},
                )
            )
    except OSError as error:
        raise DataError(f'{path}: cannot read it ({error.strerror})') from error
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f'{path}: expected {{"videos": {{NAME: {{"objects": {{LABEL: {{"frames": [...]}}}}}}}}}}, '
            f'found something else ({error!r})'
        ) from error
    if not found:
        raise DataError(f'{path}: lists no videos')
    return found, meta


def _names(frames: object) -> list[str]:
    if not isinstance(frames, list):  # a text would be taken for a list of its characters
        raise TypeError(f'"frames" is {frames!r}')
    return list(map(str, frames))


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object as a dictionary. Two entries with one name are an error; Python alone would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f'{next(name for name in names if names.count(name) > 1)!r} twice')
    return found
