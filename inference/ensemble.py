"""Ensembles: cores (network x size x flip) that take every frame together; no probabilities outlive it."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from inference.config import InferenceConfig, recommended_config
from inference.core import Core, InferenceCore, InputError, Schedule
from model.network import Network


@dataclass(frozen=True)
class Member:
    """One core of an ensemble. The same network may serve several; its weights are there once."""

    network: Network
    _: KW_ONLY
    size: int | None = None  # shorter side at which the network works; None: frames as they are
    flip: bool = False  # it sees the video mirrored, left to right
    kernel_sigma: float | None = None  # of the kernelised read; None: the plain one


class Ensemble(Core):
    """Segments a video with several cores; its probabilities are the mean of theirs (supplementary E).

    Each core has a memory of its own, filled from its own probabilities; the mean is taken at the frame's size, frame
    by frame, so that an ensemble of N holds N memories and one sum. One of a single member gives what its core gives.

    Args:
        members: networks, sizes and flips; all networks on one device.
        config: what all cores share, the schedule among it; sizes, flips and kernels are the members'.
        object_chunk, num_frames, options: as of :class:`InferenceCore`.
    """

    def __init__(
        self,
        members: Sequence[Member],
        config: InferenceConfig | None = None,
        *,
        object_chunk: int | None = None,
        num_frames: int | None = None,
        **options,
    ):
        if not members:
            raise ValueError('members: expected at least one')
        if config is None:
            config = recommended_config([member.network for member in members], size=None)
        self.members = tuple(members)
        self.cores = [
            InferenceCore(
                member.network,
                replace(config, **options, size=member.size, kernel_sigma=member.kernel_sigma, flip=False),
                object_chunk=object_chunk,
                num_frames=num_frames,
                mirrored=member.flip,
            )
            for member in members
        ]
        devices = {core.device for core in self.cores}
        if len(devices) > 1:
            raise ValueError(f'members: expected networks on one device, found {", ".join(sorted(map(str, devices)))}')

    @classmethod
    def of(cls, networks: Sequence[Network], config: InferenceConfig, **options) -> 'Ensemble':
        """Of every network a core for each size, with and without flip; ``options`` as of the constructor."""
        members = [Member(network, **view._asdict()) for network in networks for view in config.views]
        return cls(members, config, **options)

    @property
    def device(self) -> torch.device:
        """All networks are there."""
        return self.cores[-1].device

    @property
    def schedule(self) -> Schedule:
        """All cores have the same."""
        return self.cores[-1].schedule

    @property
    def objects(self) -> list[int]:
        """Labels, in the order of the channels."""
        return self.cores[-1].objects

    @property
    def parts(self) -> Sequence[InferenceCore]:
        return self.cores

    def working_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        return max(core.working_shape(shape) for core in self.cores)

    @torch.inference_mode()
    def step(
        self,
        image: Tensor | None,
        mask: Tensor | None = None,
        objects: Sequence[int] | None = None,
        *,
        wanted: bool = True,
        last: bool = False,
    ) -> Tensor | None:
        """The next frame of the video; arguments, result and errors are those of :meth:`InferenceCore.step`.

        A frame that no core takes leaves the ensemble as it was before. One that failed when some of the cores had
        taken it, for want of GPU memory, ends the video: no other frame is accepted (``InputError``).
        """
        if len({core.schedule.time for core in self.cores}) > 1:
            raise InputError('a frame before failed when some of the networks had taken it; start the video again')
        image, mask = (
            picture.to(self.device, non_blocking=True) if isinstance(picture, Tensor) else picture
            for picture in (image, mask)
        )
        total = None
        for core in self.cores:
            prob = core.step(image, mask, objects, wanted=wanted, last=last)
            if prob is not None:
                total = prob if total is None else total.add_(prob)
        return None if total is None else total.div_(len(self.cores))

    def remove(self, label: int) -> None:
        """Drop an object from all cores; as :meth:`InferenceCore.remove`."""
        for core in self.cores:
            core.remove(label)
