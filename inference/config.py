"""Everything that determines the masks of a network, as one value. Without torch: scripts check flags with it."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from model import Network

LIGHT_WEIGHTS = Path(__file__).resolve().parents[1] / 'weights' / 'stcn_light.pth'
"""The checkpoint that comes with this repository."""

RECOMMENDED = {'mem_every': 'mem_every', 'include_last': 'include_last', 'top': 'top_k', 'size': 'size'}
"""The values that a checkpoint may recommend, and the fields of :class:`InferenceConfig` that they are for."""


class View(NamedTuple):
    """How one core sees the video."""

    size: int | None  # shorter side at which the network works; None: frames as they are
    kernel_sigma: float | None
    flip: bool


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Settings of inference; two runs of the same networks with equal ones give the same masks.

    One value of ``size`` is one core a network. Several, or ``flip``, are an ensemble
    (:class:`inference.Ensemble`): of each network a core for each size, with and without flip.

    Args:
        top_k: memory positions that each position of a frame reads; ``None`` reads all of them.
        mem_every: period of the memory frames; ``None``: only annotated frames are memory frames.
        include_last: the previous frame is a temporary memory frame, too (STM's schedule).
        max_memory_frames: bound of the memory; the least used frame goes, never an annotated one.
        size: shorter side in pixels at which the network works (YouTubeVOS: 480); ``None`` takes frames as they are
            (DAVIS). One value or several.
        enlarge: whether a frame that is smaller than ``size`` is enlarged to it; if not, it is taken as it is.
        kernel_sigma: deviation of the kernelised read in steps of 16 pixels; 7 for frames of 600p and a network
            trained at 480p (supplementary E); ``None``: no kernel. One value, or one for each size.
        flip: also the mirrored video.
        amp: half precision (bfloat16 on a CPU) in the encoders and the decoder.
        half_memory: the memory's values, most of it, are kept in float16; with ``amp`` they are in half precision
            anyway.
        exact: direct convolutions on a CPU, as earlier versions had them; otherwise faster ones that round more
            (:mod:`model.winograd`). A core with it takes a network that was made ready with it: ``load_model(path,
            exact=True)``.

    Raises:
        ValueError: a value out of its range; the message begins with the name of the field.
    """

    top_k: int | None = 20
    mem_every: int | None = 5
    include_last: bool = False
    max_memory_frames: int | None = None
    size: int | tuple[int | None, ...] | None = None
    enlarge: bool = True
    kernel_sigma: float | tuple[float | None, ...] | None = None
    flip: bool = False
    amp: bool = False
    half_memory: bool = False
    exact: bool = False

    def __post_init__(self):
        for name in ('top_k', 'mem_every', 'max_memory_frames', 'size', 'kernel_sigma'):
            for value in _listed(getattr(self, name)):
                if value is not None and not value > 0:
                    raise ValueError(f'{name}: expected a positive number or None, found {value}')
        sizes, sigmas = _listed(self.size), _listed(self.kernel_sigma)
        if not sizes or len(sigmas) not in (1, len(sizes)):
            raise ValueError(
                f'kernel_sigma: expected one value, or one for each size ({len(sizes)}), found {len(sigmas)}'
            )
        # One way to say a thing: a single value where there is one, one sigma a size where any differs from none.
        if len(sigmas) < len(sizes):
            sigmas = sigmas * len(sizes)
        object.__setattr__(self, 'size', sizes[0] if len(sizes) == 1 else sizes)
        single = len(sizes) == 1 or not any(sigmas)
        object.__setattr__(self, 'kernel_sigma', sigmas[0] if single else sigmas)

    @property
    def views(self) -> tuple[View, ...]:
        """What the cores of one network see: every size, each as it is and, with ``flip``, mirrored."""
        sizes, sigmas = _listed(self.size), _listed(self.kernel_sigma)
        sigmas = sigmas * (len(sizes) // len(sigmas))
        return tuple(
            View(size, sigma, flip)
            for size, sigma in zip(sizes, sigmas, strict=True)
            for flip in ((False, True) if self.flip else (False,))
        )

    def of_view(self, view: View) -> 'InferenceConfig':
        """The configuration of one core."""
        return dataclasses.replace(self, size=view.size, kernel_sigma=view.kernel_sigma, flip=False)

    def settings(self) -> dict[str, object]:
        """As it is written to ``settings.json``: numbers and lists of numbers, 0 for ``None``.

        The words are those of the first version of the file, and what came later is left out where it does nothing,
        so that folders of every version can be compared.
        """

        def plain(value: object) -> object:
            return [each or 0 for each in value] if isinstance(value, tuple) else value or 0

        found: dict[str, object] = {
            'top': plain(self.top_k),
            'mem_every': plain(self.mem_every),
            'include_last': self.include_last,
            'max_memory_frames': self.max_memory_frames,
            'size': plain(self.size),
            'amp': self.amp,
            'exact': self.exact,
        }
        if self.kernel_sigma:
            sigmas = [float(each or 0) for each in _listed(self.kernel_sigma)]
            found['kernel_sigma'] = sigmas if len(sigmas) > 1 else sigmas[0]
        if not self.enlarge:
            found['enlarge'] = False
        return found | {name: True for name in ('flip', 'half_memory') if getattr(self, name)}


def recommended_config(networks: Iterable['Network'], **options) -> InferenceConfig:
    """What the checkpoints of the networks recommend, as far as ``options``, fields of the configuration, say nothing.

    A recommended size is no larger than the frame's own.
    """
    fields: dict[str, Any] = {
        RECOMMENDED[name]: value if name == 'include_last' else value or None
        for name, value in recommendation(networks).items()
    }
    if fields.get('size') and 'size' not in options:
        fields['enlarge'] = False
    return InferenceConfig(**(fields | options))


def recommendation(networks: Iterable['Network']) -> Mapping[str, int]:
    """What the checkpoints of networks agree to recommend, by the names of ``RECOMMENDED``."""
    found = [network.recommended for network in networks]
    return found[0] if found and all(each == found[0] for each in found) else {}


def _listed(value: object) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
