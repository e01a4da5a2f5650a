"""Ensembles: cores (network x size x flip) that take every frame together; no probabilities outlive it."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import reduce

import torch
from torch import Tensor

from inference.core import EncodedFrame, InferenceCore, InputError, Schedule
from model.network import Network


@dataclass(frozen=True)
class Member:
    """One core of an ensemble. The same network may serve several; its weights are there once."""

    network: Network
    _: KW_ONLY
    size: int | None = None  # shorter side at which the network works; None: frames as they are
    flip: bool = False  # it sees the video mirrored, left to right
    kernel_sigma: float | None = None  # of the kernelised read; None: the plain one

    def core(self, **options) -> InferenceCore:
        return InferenceCore(self.network, size=self.size, kernel_sigma=self.kernel_sigma, **options)


class Ensemble:
    """Segments a video with several cores; its probabilities are the mean of theirs (supplementary E).

    To its users it is a core: ``step``, ``to_labels``, ``objects``, ``schedule``, ``device``. Each core has a memory
    of its own, filled from its own probabilities; the mean is taken at the frame's size, frame by frame, so that an
    ensemble of N holds N memories and two sums. One of a single member gives what its core gives.

    Args:
        members: networks, sizes and flips; all networks on one device.
        core_options: keyword arguments of :class:`InferenceCore` that all cores share, the schedule among them.
    """

    def __init__(self, members: Sequence[Member], **core_options):
        if not members:
            raise ValueError('members: expected at least one')
        self.members = tuple(members)
        self.cores = [member.core(**core_options) for member in members]
        devices = {core.device for core in self.cores}
        if len(devices) > 1:
            raise ValueError(f'members: expected networks on one device, found {", ".join(sorted(map(str, devices)))}')
        [self.device] = devices
        # Of the frame that is being taken: the cores that have it, and the sums of what they said, by flip. Mirrored
        # probabilities are added up as they are: once a core has moved on, nothing needs memory until all have.
        self._frame: tuple = ()
        self._taken = 0
        self._sums: dict[bool, Tensor] = {}

    @property
    def schedule(self) -> Schedule:
        """All cores have the same; the last one moves on when the frame is done."""
        return self.cores[-1].schedule

    @property
    def objects(self) -> list[int]:
        """Labels, in the order of the channels."""
        return self.cores[-1].objects

    def encode(self, images: Sequence[Tensor]) -> list[tuple[EncodedFrame, ...]]:
        """As :meth:`InferenceCore.encode`: some of the next frames at once, by every core, for ``step`` to take."""
        images = [image.to(self.device, non_blocking=True) for image in images]
        by_core = [
            core.encode([_mirrored(image) for image in images] if member.flip else images)
            for core, member in zip(self.cores, self.members, strict=True)
        ]
        return list(zip(*by_core, strict=True))

    @torch.inference_mode()
    def step(
        self,
        image: Tensor | tuple[EncodedFrame, ...] | None,
        mask: Tensor | None = None,
        objects: list[int] | None = None,
        *,
        wanted: bool = True,
        last: bool = False,
    ) -> Tensor | None:
        """The next frame of the video; arguments, result and errors are those of :meth:`InferenceCore.step`.

        A frame that failed halfway, for want of GPU memory, has to be given again: cores that have taken it keep what
        they found, the others go on from there. Nothing else is accepted then (``InputError``). A frame that
        no core takes leaves the ensemble as it was before.
        """
        if isinstance(image, Tensor):
            image = image.to(self.device, non_blocking=True)
        mask = None if mask is None else mask.to(self.device, non_blocking=True)
        frame = (image, mask, None if objects is None else list(objects), wanted, last)
        if self._taken and not _equal(frame, self._frame):
            raise InputError(
                f'frame {self.schedule.time + 1} failed when {self._taken} of {len(self.cores)} cores '
                'had taken it; expected it again, found another one'
            )
        self._frame = frame
        for core, member in list(zip(self.cores, self.members, strict=True))[self._taken :]:
            pictures = image[self._taken] if isinstance(image, tuple) else image, mask
            if member.flip:  # what is encoded is mirrored already
                pictures = (_mirrored(picture) if isinstance(picture, Tensor) else picture for picture in pictures)
            prob = core.step(*pictures, objects, wanted=wanted, last=last)
            if prob is not None:
                total = self._sums.get(member.flip)
                self._sums[member.flip] = prob if total is None else total.add_(prob)
            self._taken += 1
        prob = None
        if wanted:
            prob = reduce(torch.add, [_mirrored(total) if flip else total for flip, total in self._sums.items()])
            prob /= len(self.cores)
        self._frame, self._taken, self._sums = (), 0, {}
        return prob

    def to_labels(self, prob: Tensor) -> Tensor:
        """The most probable label of each pixel: what ``step`` returned ``-> [H, W]`` uint8."""
        return self.cores[-1].to_labels(prob)


def _mirrored(picture: Tensor) -> Tensor:
    """``[..., W]``, left to right."""
    return picture.flip(-1)


def _equal(frame: tuple, other: tuple) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b
        for a, b in zip(frame, other, strict=True)
    )
