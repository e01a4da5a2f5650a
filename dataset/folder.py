"""Videos of one's own: ``ROOT/JPEGImages/<video>/`` and ``ROOT/Annotations/<video>/``, or one video without names."""

from pathlib import Path

from dataset.io import DataError, check_path, list_frames, natural_key
from dataset.sequence import Frame, Video


def folder(root: str | Path) -> list[Video]:
    """The videos of a folder, with every annotation that is there; asked for from the first one on.

    Frames and masks belong together by name: ``JPEGImages/cat/0007.jpg`` and ``Annotations/cat/0007.png``.
    A folder with frames directly in ``JPEGImages`` is one video, named like the folder.

    Raises:
        DataError: for missing folders, a video without frames or masks, masks without a frame.
    """
    root = Path(root)
    images, annotations = root / 'JPEGImages', root / 'Annotations'
    for needed in (images, annotations):
        if not needed.is_dir():
            raise DataError(
                f'{needed}: missing; expected frames in {images} and masks in {annotations}, '
                'each in a folder a video, or directly for a single video'
            )
    if list_frames(images):
        return [_video(root.resolve().name, images, annotations)]
    folders = [path for path in images.iterdir() if path.is_dir() and not path.name.startswith('.')]
    names = sorted((check_path(path).name for path in folders), key=natural_key)
    if not names:
        raise DataError(f'{images}: neither frames nor folders of frames')
    return [_video(name, images / name, annotations / name) for name in names]


def _video(name: str, images: Path, annotations: Path) -> Video:
    frames = list_frames(images)
    if not frames:
        raise DataError(f'{images}: no frames (.jpg, .jpeg or .png)')
    masks = {path.stem: path for path in list_frames(annotations)}
    stray = sorted(set(masks) - {path.stem for path in frames})
    if stray:
        raise DataError(f'{annotations}: masks without a frame of the same name in {images}: {", ".join(stray[:5])}')
    if not masks:
        raise DataError(f'{annotations}: no masks; the first frame at which an object is to be segmented needs one')
    begin = next(position for position, path in enumerate(frames) if path.stem in masks)
    return Video(
        name,
        name,
        tuple(
            Frame(path.stem, path, mask=masks.get(path.stem), wanted=position >= begin)
            for position, path in enumerate(frames)
        ),
    )
