"""Training clips from videos: BL30K (stage 1), DAVIS and YouTubeVOS (stages 2, 3); supplementary F.3.2 and F.3.3."""

import itertools
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset.augment import FRAMES, draw_video, recolour
from dataset.io import FRAME_SUFFIXES, DataError, fit_mask, image_size, read_image, read_mask
from dataset.sampling import AddressedDataset, choose_objects, sample_frames
from dataset.synthetic import CutOuts, Layer, Thing, video_sample

log = logging.getLogger(__name__)

SPLITS = Path(__file__).parent / 'splits'
DAVIS_REPEATS = 5
"""DAVIS videos appear that often for each YouTubeVOS video: their annotations are of higher quality."""

REDRAWS = 5
CROP_SCALE = (0.36, 1.0)
BL30K_CROP_SCALE = (0.25, 1.0)
"""Its images are larger, hence the smaller crops (F.3.3)."""


@dataclass(frozen=True)
class TrainingVideo:
    """A video on disk: the frames that have both image and annotation, in order."""

    images: str
    masks: str
    frames: tuple[str, ...]
    """File names of the images; an annotation has the same stem and ends in .png."""
    stride: int = 1
    """Frames of the original video from one annotation to the next: max-skip counts original frames."""


def find_davis(root: str | Path) -> list[TrainingVideo]:
    """The training set of DAVIS 2017 at 480p, ``root``/2017/trainval; [] if that is absent."""
    base = Path(root) / '2017' / 'trainval'
    return find_videos(
        base / 'JPEGImages' / '480p', base / 'Annotations' / '480p', subset=read_split('davis_2017_train')
    )


def find_youtube(root: str | Path) -> list[TrainingVideo]:
    """The training set of YouTubeVOS downsized to a shorter edge of 480, ``root``/train_480p; [] if that is absent.

    Every fifth frame is annotated.
    """
    base = Path(root) / 'train_480p'
    return find_videos(base / 'JPEGImages', base / 'Annotations', subset=read_split('youtube_vos_train'), stride=5)


def find_bl30k(root: str | Path) -> list[TrainingVideo]:
    """BL30K, ``root``/{JPEGImages,Annotations}/<video>.

    Raises:
        DataError: no video can be used.
    """
    videos = find_videos(Path(root) / 'JPEGImages', Path(root) / 'Annotations')
    if not videos:
        raise DataError(f'{root}: expected JPEGImages/<video> and Annotations/<video>, found no video to train on.')
    return videos


def find_main(davis_root: str | Path, yv_root: str | Path, *, hold_aside: Iterable[str] = ()) -> list[TrainingVideo]:
    """DAVIS, five times, and YouTubeVOS; what is there of them, without the videos named in ``hold_aside``.

    Raises:
        DataError: neither is there, or there is no video to hold aside by that name.
    """
    videos = without(DAVIS_REPEATS * find_davis(davis_root) + find_youtube(yv_root), hold_aside)
    if not videos:
        raise DataError(
            f'expected videos in {Path(davis_root) / "2017" / "trainval"} or {Path(yv_root) / "train_480p"}, found '
            'none to train on. Check --davis_root and --yv_root.'
        )
    return videos


def without(videos: list[TrainingVideo], names: Iterable[str]) -> list[TrainingVideo]:
    """The videos but those of these names. Raises ``DataError`` where there are videos, but not one of a name."""
    there = {os.path.basename(video.images) for video in videos}
    if there and (unknown := set(names) - there):
        raise DataError(f'expected to hold aside training videos, found none named {", ".join(sorted(unknown))}')
    return [video for video in videos if os.path.basename(video.images) not in names]


def read_split(name: str) -> list[str]:
    """The names of a list in ``splits/``."""
    return (SPLITS / f'{name}.txt').read_text().split()


def find_videos(
    images: Path, masks: Path, *, subset: Iterable[str] | None = None, stride: int = 1
) -> list[TrainingVideo]:
    """The videos below ``images`` and ``masks`` (one folder each), all of them or those of ``subset``.

    Videos that are missing or have fewer than three annotated frames are skipped; how many is logged.
    """
    if not images.is_dir() or not masks.is_dir():
        log.warning('training goes on without %s: found no folders %s and %s', images.parent, images, masks)
        return []
    names = sorted(os.listdir(images)) if subset is None else list(subset)
    videos = [
        TrainingVideo(str(images / name), str(masks / name), _annotated_frames(images / name, masks / name), stride)
        for name in names
        if not name.startswith('.')
    ]
    usable = [video for video in videos if len(video.frames) >= 3]
    skipped = [os.path.basename(video.images) for video in videos if len(video.frames) < 3]
    log.info('%s: %d video(s)', images, len(usable))
    if skipped:
        log.warning(
            '%s: skipped %d video(s), missing or with fewer than 3 frames that have image and annotation: %s ...',
            images,
            len(skipped),
            ', '.join(skipped[:3]),
        )
    return usable


def _annotated_frames(images: Path, masks: Path) -> tuple[str, ...]:
    """From the names only, without a look at each file: BL30K has nearly ten million of them."""
    if not images.is_dir() or not masks.is_dir():
        return ()
    annotated = {name[:-4] for name in os.listdir(masks) if name.endswith('.png') and not name.startswith('.')}
    names = {
        name.rpartition('.')[0]: sys.intern(name)  # most videos use the same names
        for name in sorted(os.listdir(images))  # of 1.jpg and 1.png the same one everywhere
        if name.lower().endswith(FRAME_SUFFIXES)
    }
    return tuple(names[stem] for stem in sorted(annotated & names.keys(), key=lambda stem: (len(stem), stem)))


class VideoDataset(AddressedDataset):
    """Clips of some frames of a video with up to K = 2 objects, as ``video_sample`` makes them.

    Args:
        videos: one entry a sample of an epoch; repeat an entry to see its video more often.
        crop_scale: the area of the random crop as a fraction of the frame's.
        discard_tiny: see ``choose_objects``.
        cut_outs: pasted over half of the clips, as further objects that touch and occlude.
        frames: of a clip; a video that has fewer is walked through forth and back.
    """

    def __init__(
        self,
        videos: list[TrainingVideo],
        *,
        size: int = 384,
        crop_scale: tuple[float, float] = CROP_SCALE,
        discard_tiny: bool = False,
        cut_outs: CutOuts | None = None,
        frames: int = FRAMES,
    ) -> None:
        super().__init__()
        self.videos, self.size = videos, size
        self.crop_scale, self.discard_tiny = crop_scale, discard_tiny
        self.cut_outs, self.frames = cut_outs, frames

    def __len__(self) -> int:
        return len(self.videos)

    def sample(self, index: int, rng: np.random.Generator, *, max_skip: int) -> dict[str, Any]:
        """A clip whose first frame shows an object; after five more draws without one, a clip with none.

        ``max_skip`` counts frames of the original video.
        """
        video = self.videos[index]
        for _ in range(1 + REDRAWS):
            there, skip = len(video.frames), max(1, max_skip // video.stride)
            places = sample_frames(there, skip, rng, count=min(self.frames, there))
            there_and_back = itertools.cycle(places + places[-2:0:-1])
            names = [video.frames[place] for place in itertools.islice(there_and_back, self.frames)]
            if rng.random() < 0.5:
                names.reverse()
            height, width = _common_size(video, names)
            annotations = [_read_annotation(video, name, (height, width)) for name in names]
            augmentation = draw_video(
                rng, height, width, size=self.size, crop_scale=self.crop_scale, frames=self.frames
            )
            labels = np.stack([w.labels(a) for w, a in zip(augmentation.warps, annotations, strict=True)])
            layers = self._cut_outs(rng, labels)
            for layer in layers:
                layer.paste_label(labels)
            objects = choose_objects(labels, rng, discard_tiny=self.discard_tiny)
            if objects:
                break

        views = zip(names, augmentation.warps, augmentation.frame_colours, strict=True)
        frames = [
            warp.image(
                recolour(read_image(_image_path(video, name), reduction=warp.reduction), augmentation.colour + own)
            )
            for name, warp, own in views
        ]
        for layer in layers:
            layer.paste(frames)
        return video_sample(frames, labels, objects, name=f'{video.images} {" ".join(names)}')

    def _cut_outs(self, rng: np.random.Generator, labels: np.ndarray) -> list[Layer]:
        """What is pasted over a clip whose objects are in ``labels``, uint8 [T, S, S]; over half of them nothing."""
        if self.cut_outs is None or rng.random() >= 0.5:
            return []
        scene = [Thing(None, 255 * (labels == label).astype(np.uint8)) for label in np.unique(labels) if label]
        return self.cut_outs.draw(rng, self.size, frames=self.frames, scene=scene)


def _image_path(video: TrainingVideo, name: str) -> str:
    return os.path.join(video.images, name)


def _common_size(video: TrainingVideo, names: list[str]) -> tuple[int, int]:
    """(H, W) of the frames. Raises ``DataError`` if they differ."""
    sizes = [image_size(_image_path(video, name)) for name in names]
    if len(set(sizes)) > 1:
        raise DataError(f'{video.images}: expected frames of one size, found {", ".join(names)} to differ')
    return sizes[0]


def _read_annotation(video: TrainingVideo, name: str, size: tuple[int, int]) -> np.ndarray:
    """The labels of a frame of this size, uint8 [H, W]."""
    path = os.path.join(video.masks, os.path.splitext(name)[0] + '.png')
    return fit_mask(read_mask(path), size, path)
