"""Training clips from videos: BL30K (stage 1); DAVIS, YouTubeVOS and videos of your own (stages 2, 3).

Supplementary F.3.2 and F.3.3.
"""

import itertools
import logging
import math
import os
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset.augment import FRAMES, draw_video, recolour
from dataset.io import FRAME_SUFFIXES, DataError, fit_mask, image_size, natural_key, read_image, read_mask
from dataset.sampling import AddressedDataset, choose_objects, sample_frames
from dataset.synthetic import CutOuts, Layer, Thing, video_sample
from util.metrics import VOID, labels_in

log = logging.getLogger(__name__)

SPLITS = Path(__file__).parent / 'splits'
DAVIS_REPEATS = 5
"""DAVIS videos appear that often for each YouTubeVOS video: their annotations are of higher quality."""

DAVIS_FOLDER, YOUTUBE_FOLDER = Path('2017', 'trainval'), Path('train_480p')
"""The folders of the training sets below the roots."""

SHOWN = 3
"""How many names a log line gives as examples."""

REDRAWS = 5
CROP_SCALE = (0.36, 1.0)
BL30K_CROP_SCALE = (0.25, 1.0)
"""BL30K's images are larger, hence the smaller crops (F.3.3)."""


@dataclass(frozen=True)
class TrainingVideo:
    """A video on disk: the frames that have both image and annotation, in order."""

    images: str
    masks: str
    frames: tuple[str, ...]
    """File names of the images; an annotation has the same stem and ends in .png."""
    stride: int = 1
    """Frames of the original video from one annotation to the next: max-skip counts original frames."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return os.path.basename(self.images)

    def film(self, rng: np.random.Generator, *, frames: int, max_skip: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Draw some of its frames and an object in the first of them, to be cut out of all of them.

        ``max_skip`` counts frames of the original video.

        Returns:
            The image, uint8 [H, W, 3], and the object's coverage, uint8 [H, W], 0 or 255, of each frame. Without an
            object in the first frame, the coverages are empty.

        Raises:
            DataError: a file cannot be used.
        """
        names = _draw_frames(self, rng, frames=frames, max_skip=max_skip)
        size = _common_size(self, names)
        annotations = _read_annotations(self, names, size)
        chosen = choose_objects(annotations[0][None], rng, limit=1)
        return [
            (read_image(_image_path(self, name)), 255 * np.isin(labels, chosen).astype(np.uint8))
            for name, labels in zip(names, annotations, strict=True)
        ]


def find_davis(root: str | Path) -> list[TrainingVideo]:
    """The training set of DAVIS 2017 at 480p, ``root``/2017/trainval; empty if that folder is absent."""
    base = Path(root) / DAVIS_FOLDER
    return find_videos(
        base / 'JPEGImages' / '480p',
        base / 'Annotations' / '480p',
        subset=read_split('davis_2017_train'),
        unlisted='validation videos are never trained on',
    )


def find_youtube(root: str | Path) -> list[TrainingVideo]:
    """The training set of YouTubeVOS, resized to a shorter edge of 480, ``root``/train_480p; empty if that is absent.

    Every fifth frame is annotated.

    Raises:
        DataError: it is there as downloaded, and was not downsized; or ``root`` is a folder in it.
    """
    base, downloaded = Path(root) / YOUTUBE_FOLDER, Path(root) / 'train'
    convert = f"'python scripts/convert.py youtube --root {root}'"
    if (downloaded / 'JPEGImages').is_dir():
        if not (base / 'JPEGImages').is_dir():
            raise DataError(
                f'{base}: expected YouTubeVOS at a shorter edge of 480, found it as downloaded in {downloaded}. '
                f"Convert it with {convert}, or leave it out with the root 'none'."
            )
        unconverted = _folders(downloaded / 'JPEGImages') - _folders(base / 'JPEGImages')
        if unconverted:
            log.warning(
                '%s: lacks %d of the videos in %s: %s. %s converts the rest',
                *(base, len(unconverted), downloaded, _some(sorted(unconverted)), convert),
            )
    if not base.is_dir() and (Path(root) / 'JPEGImages').is_dir():
        raise DataError(
            f'{base}: expected a folder with JPEGImages/<video>, found that {root} has them itself. The root is the '
            f'folder that holds {YOUTUBE_FOLDER}.'
        )
    return find_videos(
        base / 'JPEGImages',
        base / 'Annotations',
        subset=read_split('youtube_vos_train'),
        stride=5,
        unlisted=f'where {base} is a folder of your own, videos of any name are taken',
    )


def find_bl30k(root: str | Path) -> list[TrainingVideo]:
    """BL30K, ``root``/{JPEGImages,Annotations}/<video>.

    Raises:
        DataError: no video can be used.
    """
    videos = find_videos(Path(root) / 'JPEGImages', Path(root) / 'Annotations')
    if not videos:
        raise DataError(
            f'{root}: expected JPEGImages/<video> and Annotations/<video>, found no video to train on',
            options=['bl_root'],
        )
    return videos


def find_own(roots: Iterable[str | Path], *, video_list: str | Path | None = None) -> list[TrainingVideo]:
    """Videos of one's own, ``root``/{JPEGImages,Annotations}/<video>, whatever their names.

    The stride of each video is found by ``annotation_stride``, and logged.

    Args:
        video_list: a text file that names the videos to take, one per line; all of them if it is not given.

    Raises:
        DataError: a root lacks one of these folders; there is no list, and a root has no video that can be used; or
            the list is empty, or names a video that is in no root or cannot be used.
        OSError: the list cannot be read.
    """
    folders = [Path(root) for root in roots]
    for root in folders:
        absent = [name for name in ('JPEGImages', 'Annotations') if not (root / name).is_dir()]
        if absent:
            raise DataError(
                f'{root}: expected the folders JPEGImages/<video> and Annotations/<video>, found no '
                f'{" and no ".join(absent)}',
                options=['video_root'],
            )
    names = None if video_list is None else _read_list(video_list, [root / 'JPEGImages' for root in folders])
    videos = []
    for root in folders:
        images, masks = root / 'JPEGImages', root / 'Annotations'
        there = _folders(images)
        subset = None if names is None else [name for name in names if name in there]
        found = find_videos(images, masks, subset=subset, stride=None)
        if names is None and not found:
            raise DataError(
                f'{root}: expected a video with three frames or more that have an annotation of the same name, as '
                'JPEGImages/<video>/00000.jpg and Annotations/<video>/00000.png, found none',
                options=['video_root'],
            )
        if unusable := sorted(set(subset or ()) - {video.name for video in found}):
            raise DataError(
                f'{video_list}: expected videos to train on, but {len(unusable)} in {images} cannot be used, as said '
                f'above: {_some(unusable)}'
            )
        videos += found
    return videos


def _read_list(path: str | Path, folders: list[Path]) -> list[str]:
    """The names in a list, each of which is that of a folder in one of ``folders``. Raises ``DataError``."""
    lines = Path(path).read_text(encoding='utf-8-sig', errors='surrogateescape').splitlines()
    names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        raise DataError(f'{path}: expected names of videos, one per line, found none.')
    there = set().union(*map(_folders, folders))
    if unknown := [name for name in names if name not in there]:
        raise DataError(
            f'{path}: expected names of folders in {" or ".join(map(str, folders))}, found no folder for '
            f'{len(unknown)} of {len(names)}: {_some(unknown)}'
        )
    return names


def find_main(
    davis_root: str | Path,
    yv_root: str | Path,
    *,
    video_roots: Sequence[str | Path] = (),
    video_list: str | Path | None = None,
    video_repeat: int = 1,
    hold_aside: Collection[str] = (),
) -> list[TrainingVideo]:
    """List DAVIS five times, YouTubeVOS once, and videos of one's own ``video_repeat`` times.

    DAVIS or YouTubeVOS may be absent. A data set with the root ``'none'`` is not used, and a folder that is one of
    ``video_roots`` is not read twice. The videos that are named in ``hold_aside`` are left out, wherever they are. See
    ``find_own`` for ``video_roots`` and ``video_list``.

    Raises:
        DataError: there is no video at all, or none to hold aside by that name, or ``find_own`` or ``find_youtube``
            raises it.
    """
    own = find_own(video_roots, video_list=video_list)
    whole = set() if video_list else {Path(root).resolve() for root in video_roots}
    parts: dict[str, list[TrainingVideo]] = {}
    absent = []
    for name, root, folder, find, repeats in (
        ('DAVIS', davis_root, DAVIS_FOLDER, find_davis, DAVIS_REPEATS),
        ('YouTubeVOS', yv_root, YOUTUBE_FOLDER, find_youtube, 1),
    ):
        base = Path(root) / folder
        if str(root) == 'none' or base.resolve() in whole:
            continue
        if own and not base.is_dir():  # no cause for a warning: there is something to train on
            absent.append(f'{name} ({base})')
        else:
            parts[name] = repeats * find(root)
    parts['videos of your own'] = video_repeat * own

    _check_held_aside([video for part in parts.values() for video in part], hold_aside)
    parts = {name: [video for video in part if video.name not in hold_aside] for name, part in parts.items()}
    videos = [video for part in parts.values() for video in part]
    if not videos:
        places = [Path(davis_root) / DAVIS_FOLDER, Path(yv_root) / YOUTUBE_FOLDER, *video_roots]
        raise DataError(
            f'expected videos in {" or ".join(map(str, places))}, found none to train on'
            f'{" but those held aside" if hold_aside else ""}; videos of any name are read from folders of your own. '
            'docs/data.md says how to get the data sets',
            options=['davis_root', 'yv_root', 'video_root'],
        )
    if own:
        shares = ', '.join(f'{name} ({100 * len(part) / len(videos):.3g}%)' for name, part in parts.items())
        log.info('real clips are drawn from %s%s', shares, f'; not there: {", ".join(absent)}' if absent else '')
    return videos


def without(videos: list[TrainingVideo], names: Collection[str]) -> list[TrainingVideo]:
    """The videos without those of these names. Raises ``DataError`` if there are videos, but not of each name."""
    _check_held_aside(videos, names)
    return [video for video in videos if video.name not in names]


def _check_held_aside(videos: list[TrainingVideo], names: Collection[str]) -> None:
    if videos and (unknown := sorted(set(names) - {video.name for video in videos})):
        folders = sorted({os.path.dirname(video.images) for video in videos})
        raise DataError(
            f'expected to hold aside training videos, found none named {_some(unknown)} among those that can be used '
            f'in {" or ".join(folders)}'
        )


def read_split(name: str) -> list[str]:
    """The names of a list in ``splits/``."""
    return (SPLITS / f'{name}.txt').read_text().split()


def find_videos(
    images: Path,
    masks: Path,
    *,
    subset: Iterable[str] | None = None,
    stride: int | None = 1,
    unlisted: str | None = None,
) -> list[TrainingVideo]:
    """The videos below ``images`` and ``masks`` (one folder each), all of them or those of ``subset``.

    A video needs three frames that have an annotation. What is left out is logged, a line for each cause.

    Args:
        stride: of every video, see ``TrainingVideo``; None: ``annotation_stride`` finds it, and it is logged.
        unlisted: ends the line on folders that are not in ``subset``; None: there is no such line.
    """
    if not images.is_dir() or not masks.is_dir():
        log.warning('training goes on without %s: found no folders %s and %s', images.parent, images, masks)
        return []
    there = _folders(images) | _folders(masks)
    names = sorted(there) if subset is None else list(subset)
    videos: list[TrainingVideo] = []
    absent, frameless, unannotated, short, double, stray = [], [], [], [], [], []
    strides: dict[int | None, list[str]] = {}
    for name in names:
        (stems, doubles), annotated = _frames(images / name), _annotations(masks / name)
        frames = _in_order(stems[stem] for stem in annotated & stems.keys())
        if len(frames) >= 3:
            found = annotation_stride(frames) if stride is None else stride
            strides.setdefault(found, []).append(name)
            videos.append(TrainingVideo(str(images / name), str(masks / name), frames, found or 1))
            double += [f'{name}/{frame}' for frame in doubles]
            stray += [f'{name}/{stem}.png' for stem in sorted(annotated - stems.keys())]
        elif name not in there:
            absent.append(name)
        elif not stems:
            frameless.append(name)
        elif not annotated:
            unannotated.append(name)
        else:
            short.append(f'{name} ({len(frames)} of {len(stems)})')
    loose = [] if subset is not None else [name for name in _frames(images)[0].values() if name not in there]
    others = [] if unlisted is None else sorted(there - set(names))

    log.info('%s: %d video(s)', images, len(videos))
    if stride is None:
        for found, group in strides.items():
            log.info('%s: %s: %s', images, _describe(found), _some(group))
    for what, left_out, advice in (
        ('video(s) of the training list that are not there', absent, None),
        ('video(s) that are not in the training list', others, unlisted),
        (f'video(s) without frames ({" ".join(FRAME_SUFFIXES)})', frameless, None),
        ('video(s) without annotations', unannotated, f'expected {masks}/<video>/<frame>.png'),
        ('video(s) with fewer than 3 frames that have an annotation', short, 'expected 00000.png for 00000.jpg'),
        ('frame(s) with the name of another one (.jpg, .png)', double, f'{masks} is the folder of annotations'),
        ('annotation(s) without a frame of the same name', stray, None),
        ('frame(s) that are in no folder of a video', loose, f'expected {images}/<video>/<frame>'),
    ):
        if left_out:
            advice = f'; {advice}' if advice else ''
            log.warning('%s: left out %d %s: %s%s', images, len(left_out), what, _some(left_out), advice)
    return videos


def annotation_stride(frames: Sequence[str]) -> int | None:
    """The smallest step between the numbers in the names of annotated frames; None if it does not divide all steps.

    It is 5 for 00000.jpg, 00005.jpg, 00010.jpg, 00025.jpg. Of several numbers in a name, the one that varies counts.
    """
    numbers = zip(*(map(int, re.findall('[0-9]+', os.path.splitext(name)[0])) for name in frames), strict=False)
    varying = [column for column in numbers if len(set(column)) > 1]
    if len(varying) != 1:
        return None
    steps = [b - a for a, b in itertools.pairwise(varying[0])]
    return min(steps) if min(steps) > 0 and min(steps) == math.gcd(*steps) else None


def _describe(stride: int | None) -> str:
    if stride is None:
        return 'the numbers in the names are not evenly spaced, so annotated frames count as neighbours'
    return f'annotated every {stride} frames, by the numbers in the names' if stride > 1 else 'annotated every frame'


def _folders(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.')}


def _frames(folder: Path) -> tuple[dict[str, str], list[str]]:
    """The file names of a video's images by their stems, and those whose stem another one has, too.

    From the names only, without a look at each file: BL30K has nearly ten million of them.
    """
    names = sorted(os.listdir(folder)) if folder.is_dir() else ()
    names = [name for name in names if name.lower().endswith(FRAME_SUFFIXES) and not name.startswith('.')]
    # Most videos use the same names; of 1.jpg and 1.png the same one is taken everywhere.
    stems = {name.rpartition('.')[0]: sys.intern(name) for name in names}
    return stems, sorted(set(names) - set(stems.values())) if len(stems) < len(names) else []


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The names of frames in the order of their numbers, as everywhere; quickly if they are numbers of one length."""
    names = sorted(names)
    usual = len({len(name) for name in names}) <= 1 and all(name.rpartition('.')[0].isdecimal() for name in names)
    return tuple(names if usual else sorted(names, key=natural_key))


def _annotations(folder: Path) -> set[str]:
    """The stems of a video's annotations, from the names only."""
    names = os.listdir(folder) if folder.is_dir() else ()
    return {name[:-4] for name in names if name.endswith(('.png', '.PNG')) and not name.startswith('.')}


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:SHOWN]) + (', ...' if len(names) > SHOWN else '')


def _draw_frames(video: TrainingVideo, rng: np.random.Generator, *, frames: int, max_skip: int) -> list[str]:
    """The names of some frames, in the order of the video or against it. A short one is shown to its end and back."""
    there, skip = len(video.frames), max(1, max_skip // video.stride)
    places = sample_frames(there, skip, rng, count=min(frames, there))
    there_and_back = itertools.cycle(places + places[-2:0:-1])
    names = [video.frames[place] for place in itertools.islice(there_and_back, frames)]
    if rng.random() < 0.5:
        names.reverse()
    return names


class VideoDataset(AddressedDataset):
    """Clips of some frames of a video with up to K = 2 objects, as ``video_sample`` makes them.

    Args:
        videos: one entry for each sample of an epoch; repeat an entry to see its video more often.
        crop_scale: the area of the random crop as a fraction of the frame's.
        discard_tiny: see ``choose_objects``.
        cut_outs: pasted over half of the clips, as further objects that touch and occlude.
        frames: the number of frames of a clip. From a video that has fewer, they are taken forwards and backwards.
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
        """A clip whose first frame shows an object. If six draws show none, the last of them is taken.

        ``max_skip`` counts frames of the original video.
        """
        video = self.videos[index]
        for _ in range(1 + REDRAWS):
            names = _draw_frames(video, rng, frames=self.frames, max_skip=max_skip)
            height, width = _common_size(video, names)
            annotations = _read_annotations(video, names, (height, width))
            augmentation = draw_video(
                rng, height, width, size=self.size, crop_scale=self.crop_scale, frames=self.frames
            )
            labels = np.stack([w.labels(a) for w, a in zip(augmentation.warps, annotations, strict=True)])
            layers = self._cut_outs(rng, labels, video, max_skip)
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

    def _cut_outs(
        self, rng: np.random.Generator, labels: np.ndarray, video: TrainingVideo, max_skip: int
    ) -> list[Layer]:
        """The cut-outs for a clip whose objects are in ``labels``, uint8 [T, S, S]; half of the clips get none."""
        if self.cut_outs is None or rng.random() >= 0.5:
            return []
        scene = [Thing(video, 255 * (labels == label).astype(np.uint8)) for label in labels_in(labels)]
        return self.cut_outs.draw(rng, self.size, frames=self.frames, max_skip=max_skip, scene=scene)


def _image_path(video: TrainingVideo, name: str) -> str:
    return os.path.join(video.images, name)


def _common_size(video: TrainingVideo, names: list[str]) -> tuple[int, int]:
    """(H, W) of the frames. Raises ``DataError`` if they differ."""
    sizes = [image_size(_image_path(video, name)) for name in names]
    if len(set(sizes)) > 1:
        raise DataError(f'{video.images}: expected frames of one size, found {", ".join(names)} to differ')
    return sizes[0]


def _read_annotations(video: TrainingVideo, names: list[str], size: tuple[int, int]) -> list[np.ndarray]:
    """The labels of frames of this size, each uint8 [H, W].

    Label 255 beside others marks pixels that do not count. They become background, as when results are scored.
    """
    paths = [annotation_path(video.masks, name) for name in names]
    found = [fit_mask(read_mask(path), size, path) for path in paths]
    if any(labels.max() == VOID for labels in found) and len(labels_in(np.stack(found))) > 1:
        for labels in found:
            labels[labels == VOID] = 0
    return found


def annotation_path(folder: str, frame: str) -> str:
    """The path of a frame's annotation, which may end in ``.PNG``."""
    path = os.path.join(folder, os.path.splitext(frame)[0])
    return f'{path}.png' if os.path.exists(f'{path}.png') or not os.path.exists(f'{path}.PNG') else f'{path}.PNG'
