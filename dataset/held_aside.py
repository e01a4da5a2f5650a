"""Videos held aside from training, with the ground truth that scores their segmentation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dataset.io import DataError, fit_mask, list_frames, read_image, read_mask
from dataset.sequence import Frame, Video
from dataset.video import DAVIS_FOLDER, YOUTUBE_FOLDER
from util.metrics import VOID, labels_in


@dataclass(frozen=True, kw_only=True)
class HeldAside(Video):
    """A video to segment from the first annotation of each of its objects; later annotations are the ground truth.

    Its frames begin with the first that shows an object. The segmentation is asked for in all frames that have an
    annotation.
    """

    truth: Mapping[str, Path]
    """Name of a frame -> its annotation."""
    size: tuple[int, int]
    """(H, W) of its frames."""
    void: bool
    """Whether label 255 marks pixels that do not count. It does if the video has other labels."""

    def read_truth(self, frame: Frame) -> np.ndarray:
        """uint8 [H, W], the labels of an annotated frame. Raises ``DataError``."""
        path = self.truth[frame.name]
        return fit_mask(read_mask(path), self.size, path)


def find_held_aside(
    names: Iterable[str], *, davis_root: str | Path, yv_root: str | Path, video_roots: Iterable[str | Path] = ()
) -> list[HeldAside]:
    """The videos of these names among those that training finds below the roots of its data sets.

    Every file is read once, so that a file that cannot be used is found before the training begins.

    Raises:
        DataError: there is no such video, it cannot be read, its frames differ in size, or no frame would be scored.
    """
    davis = Path(davis_root) / DAVIS_FOLDER
    places = [(davis / 'JPEGImages' / '480p', davis / 'Annotations' / '480p')]
    for root in (Path(yv_root) / YOUTUBE_FOLDER, *map(Path, video_roots)):
        places.append((root / 'JPEGImages', root / 'Annotations'))
    videos = []
    for name in dict.fromkeys(names):
        found = [(images / name, masks / name) for images, masks in places if (images / name).is_dir()]
        if not found:
            looked = ' or '.join(str(images) for images, _ in places)
            raise DataError(f'expected a video {name} to hold aside and to evaluate, found none in {looked}')
        videos.append(open_video(*found[0]))
    return videos


def open_video(images: Path, masks: Path) -> HeldAside:
    """A video from the folder of its frames and the folder of its annotations. Not every frame needs one.

    Raises ``DataError`` as :func:`find_held_aside`.
    """
    annotations = {path.stem: path for path in list_frames(masks) if path.suffix.lower() == '.png'}
    frames: list[Frame] = []
    known: set[int] = set()
    scored, size = 0, None
    for path in list_frames(images):
        height, width = read_image(path).shape[:2]
        found = (height, width)
        if found != (size := size or found):
            raise DataError(f'{path}: expected the size of the frames before, {size}, found {found}')
        annotation = annotations.get(path.stem)
        new: tuple[int, ...] = ()
        if annotation:
            scored += bool(known)
            labels = labels_in(fit_mask(read_mask(annotation), size, annotation))
            new = tuple(label for label in labels if label not in known)
            known.update(new)
        if known:
            mask = annotation if new else None
            frames.append(Frame(path.stem, path, mask=mask, objects=new or None, wanted=annotation is not None))
    void = VOID in known and len(known) > 1
    if void:
        frames = [_without_void(frame) for frame in frames]
    if size is None or not scored:
        raise DataError(
            f'{masks}: expected annotations to score, for frames in {images} after the first one with an object, '
            'found none'
        )
    return HeldAside(images.name, images.name, tuple(frames), truth=annotations, size=size, void=void)


def _without_void(frame: Frame) -> Frame:
    objects = tuple(label for label in frame.objects or () if label != VOID) or None
    return replace(frame, objects=objects, mask=frame.mask if objects else None)
