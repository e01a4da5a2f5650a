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
    """``'static'``: stage 0; ``'bl30k'``: stage 1; ``'main'``: DAVIS, YouTubeVOS and one's own videos, stages 2 and 3.

    Frames are ``size`` x ``size``. Only the roots that the set needs are looked at. With ``synthetic_root``, a folder
    of image and mask pairs, clips composed of these stand in for BL30K, and for half of the clips of ``'main'``,
    whose other half gets some of their objects pasted in. ``video_roots``, ``video_list``, ``video_repeat`` and
    ``hold_aside`` concern ``'main'``, see ``find_main``; ``crop_scale`` (default: the paper's) concerns all videos,
    ``cache_dir`` all image and mask pairs. Clips have ``frames`` frames; ``difficulty``, a name in ``DIFFICULTIES``,
    says how the cut-outs in them move.

    Raises:
        DataError: there is nothing to train on, or not what was asked for by name.
        KeyError: an unknown name.
    """
    if name == 'static':
        return StaticDataset(find_pairs(static_root, cache_dir=cache_dir), size=size, frames=frames)
    synthetic = cut_outs = None
    if synthetic_root:
        pairs = find_pairs(synthetic_root, cache_dir=cache_dir)
        synthetic = SyntheticDataset(pairs, size=size, frames=frames, difficulty=DIFFICULTIES[difficulty])
        cut_outs = synthetic.cut_outs
    if name == 'bl30k':
        scale = crop_scale or BL30K_CROP_SCALE
        return synthetic or VideoDataset(
            find_bl30k(bl_root), size=size, crop_scale=scale, discard_tiny=True, frames=frames
        )
    if name != 'main':
        raise KeyError(name)
    videos = VideoDataset(
        find_main(
            davis_root,
            yv_root,
            video_roots=video_roots,
            video_list=video_list,
            video_repeat=video_repeat,
            hold_aside=hold_aside,
        ),
        size=size,
        crop_scale=crop_scale or CROP_SCALE,
        cut_outs=cut_outs,
        frames=frames,
    )
    return Mixture(videos, synthetic) if synthetic else videos
