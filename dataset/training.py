"""The training sets by name."""

from collections.abc import Sequence
from pathlib import Path

from dataset.sampling import AddressedDataset
from dataset.static import StaticDataset, find_pairs
from dataset.synthetic import CutOuts, Mixture, SyntheticDataset
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
) -> AddressedDataset:
    """``'static'``: stage 0; ``'bl30k'``: stage 1; ``'main'``: DAVIS, YouTubeVOS and one's own videos, stages 2 and 3.

    Frames are ``size`` x ``size``. Only the roots that the set needs are looked at. With ``synthetic_root``, a folder
    of image and mask pairs, clips composed of these stand in for BL30K, and for half of the clips of ``'main'``,
    whose other half gets some of their objects pasted in. ``video_roots``, ``video_list``, ``video_repeat`` and
    ``hold_aside`` concern ``'main'``, see ``find_main``; ``crop_scale`` (default: the paper's) concerns all videos,
    ``cache_dir`` all image and mask pairs.

    Raises:
        DataError: there is nothing to train on, or not what was asked for by name.
        KeyError: an unknown name.
    """
    if name == 'static':
        return StaticDataset(find_pairs(static_root, cache_dir=cache_dir), size=size)
    pairs = find_pairs(synthetic_root, flag='--synthetic_root', cache_dir=cache_dir) if synthetic_root else None
    if name == 'bl30k':
        if pairs:
            return SyntheticDataset(pairs, size=size)
        scale = crop_scale or BL30K_CROP_SCALE
        return VideoDataset(find_bl30k(bl_root), size=size, crop_scale=scale, discard_tiny=True)
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
        cut_outs=CutOuts(pairs) if pairs else None,
    )
    return Mixture(videos, SyntheticDataset(pairs, size=size)) if pairs else videos
