"""The training sets by name."""
from pathlib import Path

from dataset.sampling import AddressedDataset
from dataset.static import StaticDataset, find_pairs
from dataset.video import VideoDataset, find_main


def open_training_set(
    name: str, *, size: int, static_root: str | Path, bl_root: str | Path, yv_root: str | Path, davis_root: str | Path
) -> AddressedDataset:
    """``'static'``: stage 0; ``'bl30k'``: stage 1; ``'main'``: DAVIS and YouTubeVOS, stages 2 and 3.

    Frames are ``size`` x ``size``. Only the roots that the set needs are looked at. Raises ``DataError``
    where there is nothing to train on, and ``KeyError`` on an unknown name.
    """
    sets = {
        'static': lambda: StaticDataset(find_pairs(static_root), size=size),
        'bl30k': lambda: VideoDataset.bl30k(bl_root, size=size),
        'main': lambda: VideoDataset(find_main(davis_root, yv_root), size=size),
    }
    return sets[name]()
