"""Ensembles: several cores (network x size x flip) segment every frame, and their probabilities are averaged."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from inference.config import InferenceConfig, recommended_config
from inference.core import Core, InferenceCore, InputError, Schedule
from model.network import Network


@dataclass(frozen=True)
class Member:
    """One core of an ensemble. Several members may share a network, whose weights are then in memory once."""

    network: Network
    _: KW_ONLY
    size: int | None = None  # shorter side in pixels at which the network works; None: the frame's own size
    flip: bool = False  # whether it sees the video mirrored, left to right
    kernel_sigma: float | None = None  # standard deviation of the kernelised read; None: no kernel


class Ensemble(Core):
    """Segments a video with several cores and returns the mean of their probabilities (supplementary E).

    Each core has its own memory, filled from its own probabilities. The mean is taken frame by frame at the frame's
    size, so that an ensemble of N cores holds N memories and one sum. An ensemble of one member gives the same result
    as its core.

    Args:
        members: networks, sizes and flips; all networks on one device.
        config: the settings that all cores share, such as the schedule; sizes, flips and kernels are the members'.
        object_chunk, num_frames, options: see :class:`InferenceCore`.

    Raises:
        ValueError: there is no member, or the networks are on different devices.
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
        """Make an ensemble with a core for every network and every view of ``config``; ``options``: see the class."""
        members = [Member(network, **view._asdict()) for network in networks for view in config.views]
        return cls(members, config, **options)

    @property
    def device(self) -> torch.device:
        """The device that holds all networks."""
        return self.cores[-1].device

    @property
    def schedule(self) -> Schedule:
        """The schedule, which is the same for all cores."""
        return self.cores[-1].schedule

    @property
    def objects(self) -> list[int]:
        """The labels of the known objects, in the order of the channels."""
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
        """Segment the next frame; arguments, result and errors are those of :meth:`InferenceCore.step`.

        If the first core refuses a frame, the state of the ensemble is unchanged. If a frame fails after some cores
        have processed it, for example for lack of GPU memory, the video has to be started again: every further frame
        raises an ``InputError``.
        """
        if len({core.schedule.time for core in self.cores}) > 1:
            raise InputError('an earlier frame failed after some of the cores had processed it; start the video again')
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
        """Drop an object from all cores; see :meth:`InferenceCore.remove`."""
        for core in self.cores:
            core.remove(label)
