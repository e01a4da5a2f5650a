"""Frames and masks on disk, and samples made of them. What needs torch is imported when it is used."""

from typing import TYPE_CHECKING

from util.lazy import lazy_names

if TYPE_CHECKING:
    from dataset.overlay import draw_sample
    from dataset.sampling import Address, epoch_order
    from dataset.static import find_pairs, read_coverage
    from dataset.video import find_bl30k, find_davis, find_own, find_youtube, read_split

__all__ = [
    'Address',
    'draw_sample',
    'epoch_order',
    'find_bl30k',
    'find_davis',
    'find_own',
    'find_pairs',
    'find_youtube',
    'read_coverage',
    'read_split',
]

__getattr__ = lazy_names(
    __name__,
    {
        'Address': 'sampling',
        'draw_sample': 'overlay',
        'epoch_order': 'sampling',
        'find_bl30k': 'video',
        'find_davis': 'video',
        'find_own': 'video',
        'find_pairs': 'static',
        'find_youtube': 'video',
        'read_coverage': 'static',
        'read_split': 'video',
    },
)
