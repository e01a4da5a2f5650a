"""The settings that determine a network's masks. Imports no torch, so that scripts can check their flags quickly."""

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
"""The values that a checkpoint may recommend -> the fields of :class:`InferenceConfig` that they set."""


class View(NamedTuple):
    """How one core sees the video."""

    size: int | None  # shorter side in pixels at which the network works; None: the frame's own size
    kernel_sigma: float | None
    flip: bool  # whether the video is mirrored


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Settings of inference. Two runs of the same networks with equal settings give the same masks.

    With one value of ``size`` and no ``flip``, every network runs in one core. Several sizes, or ``flip``, make an
    ensemble (:class:`inference.Ensemble`): every network runs in a core for each size, with and without flip.

    Args:
        top_k: how many memory positions each position of a frame reads; ``None`` reads all of them.
        mem_every: frames from one memorised frame to the next; ``None`` memorises only annotated frames.
        include_last: also keep the previous frame as a temporary memory frame (STM's schedule).
        max_memory_frames: the largest number of memory frames. Beyond it the least used frame is dropped, never an
            annotated one.
        size: shorter side in pixels to which frames are resized (YouTubeVOS: 480); ``None`` keeps their size
            (DAVIS). One value or several.
        enlarge: whether frames smaller than ``size`` are enlarged to it; if not, they keep their size.
        kernel_sigma: standard deviation of the kernelised read in steps of 16 pixels; 7 for frames of 600p and a
            network trained at 480p (supplementary E); ``None``: no kernel. One value, or one for each size.
        flip: average with the result on the mirrored video.
        amp: use half precision (bfloat16 on a CPU) in the encoders and the decoder.
        half_memory: keep the memory's values, which are most of it, in float16. With ``amp`` they are in half
            precision anyway.
        exact: use direct convolutions on a CPU, as earlier versions did. The default is faster and has larger
            rounding errors (:mod:`model.winograd`). The network has to be loaded for it: ``load_model(path,
            exact=True)``.

    Raises:
        ValueError: a value is out of its range; the message begins with the name of the field.
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
        # Equal settings must compare equal: a single value is no tuple, and several sizes have a sigma each or None.
        if len(sigmas) < len(sizes):
            sigmas = sigmas * len(sizes)
        object.__setattr__(self, 'size', sizes[0] if len(sizes) == 1 else sizes)
        single = len(sizes) == 1 or not any(sigmas)
        object.__setattr__(self, 'kernel_sigma', sigmas[0] if single else sigmas)

    @property
    def views(self) -> tuple[View, ...]:
        """The views of the cores of one network: one for each size and, with ``flip``, a mirrored one for each."""
        sizes, sigmas = _listed(self.size), _listed(self.kernel_sigma)
        sigmas = sigmas * (len(sizes) // len(sigmas))
        return tuple(
            View(size, sigma, flip)
            for size, sigma in zip(sizes, sigmas, strict=True)
            for flip in ((False, True) if self.flip else (False,))
        )

    def of_view(self, view: View) -> 'InferenceConfig':
        """The configuration of the core that has this view."""
        return dataclasses.replace(self, size=view.size, kernel_sigma=view.kernel_sigma, flip=False)

    def settings(self) -> dict[str, object]:
        """The settings as ``settings.json`` holds them: numbers and lists of numbers, with 0 for ``None``.

        The names are those of the first version of the file. A setting that was added later is left out while it has
        its default, so that output folders of all versions can be compared.
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
    """The configuration that the networks' checkpoints recommend, changed by the fields in ``options``.

    With a recommended size, smaller frames are not enlarged.
    """
    fields: dict[str, Any] = {
        RECOMMENDED[name]: value if name == 'include_last' else value or None
        for name, value in recommendation(networks).items()
    }
    if fields.get('size') and 'size' not in options:
        fields['enlarge'] = False
    return InferenceConfig(**(fields | options))


def recommendation(networks: Iterable['Network']) -> Mapping[str, int]:
    """The values that all checkpoints recommend, by the names in ``RECOMMENDED``; empty if the checkpoints differ."""
    found = [network.recommended for network in networks]
    return found[0] if found and all(each == found[0] for each in found) else {}


def _listed(value: object) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
