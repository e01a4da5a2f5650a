"""YouTubeVOS 2018 and 2019, as downloaded.

``ROOT/<split>/{Annotations,meta.json}`` and the frames at the full rate in
``ROOT/all_frames/<split>_all_frames/JPEGImages``.
"""

import json
from pathlib import Path

from dataset.io import DataError, check_name, list_frames
from dataset.sequence import Frame, Video


def youtube(root: str | Path, *, split: str = 'valid', output_all: bool = False) -> list[Video]:
    """The videos of a split to segment, each object from its first annotation on.

    An object's annotation is that of the first frame that ``meta.json`` lists for it; later ones, which
    training videos have, are not read. Asked for are the frames listed for any object of the video, or
    with ``output_all`` all of them, from the first annotated one on.

    Raises:
        DataError: for missing folders, frames or annotations, and for a ``meta.json`` of another form.
    """
    base = Path(root) / split
    images = Path(root) / 'all_frames' / f'{split}_all_frames' / 'JPEGImages'
    for folder in (base / 'Annotations', images):
        if not folder.is_dir():
            raise DataError(
                f'{folder}: missing; YouTubeVOS needs the annotations and meta.json in {base} and the '
                f'frames of the all-frames download in {images}'
            )
    videos = []
    for name, first_frames, listed in _read_meta(base / 'meta.json'):
        by_name = {path.stem: path for path in list_frames(images / name)}
        missing = [frame for frame in listed if frame not in by_name]
        if missing:
            raise DataError(f'{images / name}: frames that meta.json lists are missing: {", ".join(missing)}')
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


def _read_meta(path: Path) -> list[tuple[str, dict[int, str], set[str]]]:
    """Of each video its name, the first frame of every object, and all frames that are listed."""
    try:
        videos = json.loads(path.read_text(encoding='utf-8-sig'), object_pairs_hook=_once)['videos']
        found = []
        for name, video in sorted(videos.items()):
            listed = {
                int(label): [str(frame) for frame in thing['frames']]
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
                (
                    check_name(name, path),
                    {label: frames[0] for label, frames in listed.items()},
                    {frame for frames in listed.values() for frame in frames},
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
    return found


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; of two entries with one name Python would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f'{next(name for name in names if names.count(name) > 1)!r} twice')
    return found
