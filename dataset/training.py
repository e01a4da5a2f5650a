"""The training sets by name."""

from collections.abc import Sequence
from pathlib import Path

from dataset.augment import FRAMES
from dataset.sampling import AddressedDataset
from dataset.static import StaticDataset, find_pairs
from dataset.synthetic import DIFFICULTIES, Mixture, SyntheticDataset
from dataset.video import BL30K_CROP_SCALE, CROP_SCALE, VideoDataset, find_bl30k, find_main


def open_training_set(
    name: str,
    *,
    size: int,
    static_root: str | Path,
    bl_root: str | Path,
    yv_root: str | Path,
    davis_root: str | Path,
    synthetic_root: str | Path | None = None,
    video_roots: Sequence[str | Path] = (),
    video_list: str | Path | None = None,
    video_repeat: int = 1,
    hold_aside: Sequence[str] = (),
    crop_scale: tuple[float, float] | None = None,
    cache_dir: str | Path | None = None,
    frames: int = FRAMES,
    difficulty: str = 'plain',
) -> AddressedDataset:
    """Open a training set. Only the folders that it needs are looked at.

    Args:
        name: ``'static'`` for stage 0, ``'bl30k'`` for stage 1, or ``'main'`` for stages 2 and 3: DAVIS, YouTubeVOS
            and the user's own videos.
        size: height and width of the frames in pixels.
        synthetic_root: a folder of image and mask pairs, from which clips are composed. They replace BL30K, and half
            of the clips of ``'main'``; objects of these pairs are pasted into the other half.
        video_roots, video_list, video_repeat, hold_aside: for ``'main'``, see ``find_main``.
        crop_scale: for videos; by default that of the paper.
        cache_dir: for image and mask pairs, see ``find_pairs``.
        frames: the number of frames of a clip.
        difficulty: a name in ``DIFFICULTIES``, which says how objects in composed clips move.

    Raises:
        DataError: there is nothing to train on, or a video that was named is not there.
        KeyError: there is no set of this name.
    """
    if name == 'static':
        return StaticDataset(find_pairs(static_root, cache_dir=cache_dir), size=size, frames=frames)
    if name not in ('bl30k', 'main'):
        raise KeyError(name)
    videos = []
    if name == 'main':
        videos = find_main(
            davis_root,
            yv_root,
            video_roots=video_roots,
            video_list=video_list,
            video_repeat=video_repeat,
            hold_aside=hold_aside,
        )
    synthetic = None
    if synthetic_root:
        synthetic = SyntheticDataset(
            find_pairs(synthetic_root, cache_dir=cache_dir),
            size=size,
            frames=frames,
            difficulty=DIFFICULTIES[difficulty],
            videos=videos,
        )
    if name == 'bl30k':
        scale = crop_scale or BL30K_CROP_SCALE
        return synthetic or VideoDataset(
            find_bl30k(bl_root), size=size, crop_scale=scale, discard_tiny=True, frames=frames
        )
    real = VideoDataset(
        videos,
        size=size,
        crop_scale=crop_scale or CROP_SCALE,
        cut_outs=synthetic.cut_outs if synthetic else None,
        frames=frames,
    )
    return Mixture(real, synthetic) if synthetic else real
