"""Streaming propagation: the core takes one frame at a time and returns its probabilities."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.io import MAX_SIDE
from inference.confidence import confidence_of
from inference.config import LIGHT_WEIGHTS, InferenceConfig, recommended_config
from inference.memory_bank import MemoryBank
from model.aggregate import aggregate
from model.checkpoint import load_network
from model.image import IMAGE_MEAN, IMAGE_STD, unpadded
from model.image import padding as padding_of
from model.network import Network, Query
from util.distributed import choose_device
from util.errors import UserError


class InputError(UserError, ValueError):
    """A frame, mask or label that an :class:`InferenceCore` refuses. The core's state is unchanged."""


class Step(NamedTuple):
    """What the core does with a frame."""

    compute: bool  # the network runs on it
    memorise: bool  # it goes into the memory
    permanent: bool  # it stays in the memory; otherwise the next memory frame replaces it


@dataclass
class Schedule:
    """Decides which frames are computed and memorised. It holds no tensors, so a run can plan ahead with a copy."""

    mem_every: int | None = 5  # None: only annotated frames stay in the memory
    include_last: bool = False
    time: int = -1  # the number of the frame just seen
    last_annotated: int | None = None  # the number of the last annotated frame

    def peek(self, *, annotated: bool, wanted: bool, last: bool) -> Step:
        """Return what the core does with the next frame."""
        started = annotated or self.last_annotated is not None
        permanent = annotated or (
            self.last_annotated is not None
            and self.mem_every is not None
            and (self.time + 1 - self.last_annotated) % self.mem_every == 0
        )
        memorise = started and not last and (permanent or self.include_last)
        return Step(annotated or (started and (wanted or memorise)), memorise, permanent)

    def advance(self, *, annotated: bool, wanted: bool, last: bool) -> Step:
        """Return what :meth:`peek` returns, and move on to the next frame."""
        step = self.peek(annotated=annotated, wanted=wanted, last=last)
        self.time += 1
        if annotated:
            self.last_annotated = self.time
        return step

    def copy(self) -> 'Schedule':
        return replace(self)


def most_probable(prob: Tensor, objects: Sequence[int]) -> Tensor:
    """The label of the most probable channel: ``prob [1 + K, H, W]``, the background first, ``-> [H, W]`` uint8."""
    most = prob.max(dim=0).indices  # the same as argmax, which takes ten times as long on a CPU
    return torch.tensor([0, *objects], dtype=torch.uint8, device=prob.device)[most]


class Core(ABC):
    """Segments a video frame by frame: one :class:`InferenceCore`, or an ensemble that combines several."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device that holds the networks."""

    @property
    @abstractmethod
    def schedule(self) -> Schedule:
        """The schedule, advanced to the frame just seen."""

    @property
    @abstractmethod
    def objects(self) -> list[int]:
        """The labels of the known objects, in the order of the channels."""

    @abstractmethod
    def step(
        self,
        image: Tensor | None,
        mask: Tensor | None = None,
        objects: Sequence[int] | None = None,
        *,
        wanted: bool = True,
        last: bool = False,
    ) -> Tensor | None:
        """Segment the next frame of the video; see :meth:`InferenceCore.step`."""

    @property
    @abstractmethod
    def parts(self) -> Sequence['InferenceCore']:
        """The single cores: the core itself, or the members of an ensemble."""

    @abstractmethod
    def working_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The size (H, W) at which the network works on frames of size ``shape``; the largest one of an ensemble."""

    @abstractmethod
    def remove(self, label: int) -> None:
        """Drop an object between two frames; see :meth:`InferenceCore.remove`."""

    def to_labels(self, prob: Tensor) -> Tensor:
        """The most probable label of each pixel: ``prob`` as ``step`` returned it ``-> [H, W]`` uint8.

        Raises:
            InputError: ``prob`` has objects, but not the present ``objects``.
        """
        if not (isinstance(prob, Tensor) and prob.ndim == 3 and len(prob) == 1):  # not the background alone
            self._check_prob(prob)
        return most_probable(prob, self.objects)

    def confidence(self, prob: Tensor) -> dict[int, float]:
        """How sure the networks are of each object: ``prob`` as ``step`` returned it ``-> {label: confidence}``.

        A confidence is in [0, 1]; an annotated mask has 1. Call this right after the step, because the channels of
        ``prob`` must belong to the present ``objects``. ``step`` itself does not compute it.

        Raises:
            InputError: ``prob`` does not have the channels of the present ``objects``.
        """
        self._check_prob(prob)
        return confidence_of(prob, self.objects)

    def _check_prob(self, prob: Tensor) -> None:
        if not isinstance(prob, Tensor) or prob.ndim != 3 or len(prob) != 1 + len(self.objects):
            raise InputError(
                f'prob: expected what the last step returned, [{1 + len(self.objects)}, H, W] for the background and '
                f'the objects {self.objects}, found {_described(prob)}'
            )


class InferenceCore(Core):
    """Propagates masks through one video; every benchmark, demo and camera goes through ``step``.

    The first annotation starts the segmentation. Objects may appear later, with labels that are
    neither contiguous nor ordered, and may be annotated again (a correction). Of past frames the core
    keeps only the memory, which holds the annotated frames and every ``mem_every``-th frame, counted
    from the last annotated one.

    Args:
        network: an :class:`model.STCN`, :class:`model.STM` or another :class:`model.network.Network`, on the device
            to use.
        config: everything that determines the masks. The default is what the network's checkpoint recommends; where
            it recommends nothing, the defaults of :class:`InferenceConfig` apply.
        object_chunk: how many objects are encoded and decoded at a time, which bounds the GPU memory that many
            objects take; ``None`` takes all at once.
        num_frames: length of the video, if it is known; the memory is then allocated once.
        mirrored: whether the network sees the video mirrored, left to right. The caller's frames, masks and
            probabilities are not mirrored; the core mirrors them at the size at which the network works.
        options: fields of :class:`InferenceConfig` to change: ``InferenceCore(network, top_k=50, size=480)``.

    Raises:
        ValueError: for several sizes or ``flip``, which need an :class:`inference.Ensemble`, for ``exact`` with a
            network that was not loaded with ``exact=True``, and for values out of their range.
    """

    def __init__(
        self,
        network: Network,
        config: InferenceConfig | None = None,
        *,
        object_chunk: int | None = None,
        num_frames: int | None = None,
        mirrored: bool = False,
        **options,
    ):
        config = recommended_config([network], **options) if config is None else replace(config, **options)
        if len(config.views) > 1 or config.flip:
            raise ValueError(
                'size, flip: a core works at one size and without flip; use an Ensemble to average several'
            )
        [self._view] = config.views
        if config.exact and not network.exact:
            raise ValueError('exact: the network was loaded without it; use load_model(path, exact=True)')
        if object_chunk is not None and object_chunk < 1:
            raise ValueError(f'object_chunk: expected a positive number, found {object_chunk}')
        self.network = network
        self.config = config
        self.object_chunk = object_chunk
        self._mirrored = mirrored
        self._device = network.device
        self._schedule = Schedule(config.mem_every, config.include_last)
        self._objects: list[int] = []
        # The first frame, one in every mem_every of the others, and the temporary memory frame.
        capacity = 8
        if num_frames is not None:
            capacity = 2 + (0 if config.mem_every is None else (num_frames - 1) // config.mem_every)
        self.memory = MemoryBank(
            shared_keys=network.shared_keys,
            metric=network.similarity,
            top_k=config.top_k,
            kernel_sigma=self._view.kernel_sigma,
            max_frames=config.max_memory_frames,
            capacity=capacity,
            value_dtype=torch.half if config.half_memory and not config.amp else None,
        )
        self._frame_shape: tuple[int, int] | None = None
        self._mean = torch.tensor(IMAGE_MEAN, device=self.device)[:, None, None]
        self._std = torch.tensor(IMAGE_STD, device=self.device)[:, None, None]
        self._outside: Tensor | None = None
        if any(network.padding_colour):
            self._outside = torch.tensor(network.padding_colour, device=self.device)[:, None, None]

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def schedule(self) -> Schedule:
        return self._schedule

    @property
    def objects(self) -> list[int]:
        return self._objects

    @property
    def parts(self) -> Sequence['InferenceCore']:
        return [self]

    def state(self) -> dict[str, Any]:
        """The state with which :meth:`restore` continues this core; the rows of the memory are saved separately."""
        return {
            'schedule': asdict(self._schedule),
            'objects': self._objects,
            'frame_shape': self._frame_shape,
            'memory': self.memory.state(),
        }

    def restore(self, state: dict[str, Any], rows: Iterable[Sequence[Tensor]]) -> None:
        """Continue from the state of another core of the same network and configuration, bit for bit.

        Args:
            state: the result of its ``state()``.
            rows: the result of its ``memory.rows(slot)`` for each frame in its memory.
        """
        self._schedule = Schedule(**state['schedule'])
        self._objects = list(state['objects'])
        self._frame_shape = None if state['frame_shape'] is None else tuple(state['frame_shape'])
        self.memory.restore(state['memory'], rows, self.device)

    def working_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        return self._working_shape(shape) or shape

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
        """Segment the next frame of the video.

        Args:
            image: ``[3, H, W]`` RGB, uint8 or float in [0, 1], on any device; all frames of a video
                have one size. May be ``None`` on a frame that is not computed (see ``Schedule``).
            mask: ``[H, W]`` labels of an annotated frame in any integer type; 0 is the background.
            objects: the labels that ``mask`` annotates; by default the labels that occur in it. The masks
                of known objects are replaced, and new objects join. A label without pixels is an empty mask.
            wanted: whether the caller needs the output. A frame is skipped if it is not wanted, not
                annotated and not memorised.
            last: whether this is the last frame, which need not go into the memory.

        Returns:
            Probabilities ``[1 + K, H, W]`` in float32 on the network's device: the background first,
            then ``self.objects``. Before any object is known, there is only the background. ``None`` if
            ``wanted`` is false.

        Raises:
            InputError: an image or mask has the wrong shape or range, or labels come without a mask.
        """
        labels: list[int] = []
        if mask is not None:
            labels = _check_labels(mask, objects)
        elif objects:
            raise InputError(f'objects {list(objects)} were given without a mask')
        annotated = bool(labels)
        step = self.schedule.peek(annotated=annotated, wanted=wanted, last=last)
        if image is not None:
            shape = self._check_frame(image)
            if mask is not None and tuple(mask.shape) != shape:
                raise InputError(f'mask: expected the size of its image, {shape}, found {tuple(mask.shape)}')
            self._frame_shape = shape
        if not step.compute:
            background = self._background() if wanted else None
            self.schedule.advance(annotated=annotated, wanted=wanted, last=last)
            return background
        if image is None:
            raise self._no_image()

        with self._autocast():
            picture, padding = self._to_network(image)
            query = self.network.encode_query(picture)
            prob = self._segment(query) if self.objects else picture.new_ones(1, *picture.shape[-2:])
            known = self.objects
            if mask is not None and annotated:
                known = known + [label for label in labels if label not in known]
                prob = self._merge(prob, mask, labels, known, padding)
            if step.memorise:
                masks = prob[1:]
                if not self.network.objects_in_padding:
                    masks = F.pad(unpadded(masks, padding), padding)
                key, value = self.network.encode_memory(picture, query, masks[None], object_chunk=self.object_chunk)
        found = self._to_frame(prob, padding) if wanted else None
        # The state changes only at the end, so that a frame that failed can be given again.
        if step.memorise:
            self.memory.add(key[0], value[0], permanent=step.permanent, protected=annotated)
        self._objects = known
        self.schedule.advance(annotated=annotated, wanted=wanted, last=last)
        return found

    @torch.inference_mode()
    def remove(self, label: int) -> None:
        """Drop an object between two frames, with its values in the memory and the frames that only it reads.

        Later frames take the time and memory that they would take without this object. Its pixels become background
        or another object. The label may be annotated again and is then a new object. When no object is left, the core
        waits for an annotation, as at the beginning of the video.

        Raises:
            InputError: there is no such object. The core's state is unchanged.
        """
        if label not in self.objects:
            raise InputError(f'label: expected one of the objects {self.objects}, found {label!r}')
        index = self.objects.index(label)
        if index < self.memory.num_objects:  # an object of the last frame may not have gone into the memory
            self.memory.remove(index)
        self._objects = [other for other in self.objects if other != label]
        if not self.objects:
            self.schedule.last_annotated = None

    def _background(self) -> Tensor:
        """The probabilities of a frame before any object is known."""
        if self._frame_shape is None:
            raise self._no_image()
        return torch.ones(1, *self._frame_shape, device=self.device)

    def _no_image(self) -> InputError:
        return InputError(f'frame {self.schedule.time + 1} has to be computed, but its image is None')

    def _check_frame(self, image: Tensor) -> tuple[int, int]:
        """Check an image that was given to ``step``, and return its size."""
        if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise InputError(f'image: expected [3, H, W], found {_described(image)}')
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise InputError(f'image: expected uint8 or float in [0, 1], found {image.dtype}')
        if image.is_floating_point():
            low, high = torch.stack(image.aminmax()).tolist()
            if not (low > -0.5 and high < 1.5):  # resampling overshoots [0, 1] a little; NaN fails the comparison
                raise InputError(f'image: expected uint8 or float in [0, 1], found values from {low:g} to {high:g}')
        found = (image.shape[1], image.shape[2])
        if self._frame_shape not in (None, found):
            raise InputError(f'image: expected the size of the frames before, {self._frame_shape}, found {found}')
        if (shape := self._working_shape(found)) is not None and max(shape) > MAX_SIDE:
            raise InputError(
                f'image: {found} resized to a shorter side of {self._view.size}: the longer side exceeds {MAX_SIDE}'
            )
        return found

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type,
            enabled=self.config.amp,
            dtype=torch.float16 if self.device.type == 'cuda' else torch.bfloat16,
        )

    def _to_network(self, image: Tensor) -> tuple[Tensor, tuple[int, int, int, int]]:
        """``[3, H, W] -> [1, 3, H', W']``: normalised, resized, mirrored, padded to multiples of 16."""
        image = image.to(self.device, non_blocking=True)
        image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        image = ((image - self._mean) / self._std).unsqueeze(0)
        if (shape := self._working_shape(image.shape[-2:])) is not None:
            image = F.interpolate(image, shape, mode='bicubic', align_corners=False)
        image = self._mirror(image)
        padding = padding_of(*image.shape[-2:])
        # The padding comes after the normalisation, so that zero is the mean colour.
        if self._outside is None:
            return F.pad(image, padding), padding
        return F.pad(image - self._outside, padding) + self._outside, padding

    def _working_shape(self, shape: Sequence[int]) -> tuple[int, int] | None:
        """The frame size with a shorter side of ``size`` and the longer side rounded down; ``None``: no resizing."""
        (H, W), size = shape, self._view.size
        if size is None or (not self.config.enlarge and size >= min(H, W)):
            return None
        if H < W:
            return size, size * W // H
        return size * H // W, size

    def _mirror(self, picture: Tensor) -> Tensor:
        """Mirror ``[..., W]`` for the network, or back.

        This must come after resizing, since nearest-neighbour resizing does not commute with mirroring.
        """
        return picture.flip(-1) if self._mirrored else picture

    def _to_frame(self, prob: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
        """Probabilities without the padding, at the frame's own size."""
        prob = self._mirror(unpadded(prob, padding))
        if prob.shape[1:] != self._frame_shape:
            prob = F.interpolate(prob[None], self._frame_shape, mode='bilinear', align_corners=False)[0]
        return prob

    def _segment(self, query: Query) -> Tensor:
        """Read the memory and decode: the aggregated probabilities ``[1 + K, H', W']`` of a frame."""
        readout = self.memory.read(query.key[0])
        chunks = readout.split(self.object_chunk or len(readout))
        logits = torch.cat([self.network.decode(chunk[None], query) for chunk in chunks], dim=1)
        return aggregate(logits.float().sigmoid()).softmax(dim=1)[0]

    def _merge(
        self,
        prob: Tensor,
        mask: Tensor,
        objects: list[int],
        known: list[int],
        padding: tuple[int, int, int, int],
    ) -> Tensor:
        """Put the annotated masks of ``objects`` into the probabilities; the result has the channels ``known``."""
        mask = mask.to(self.device, torch.uint8)
        if (shape := self._working_shape(mask.shape)) is not None:
            mask = F.interpolate(mask[None, None].float(), shape, mode='nearest')[0, 0]
        mask = F.pad(self._mirror(mask), padding)
        merged = torch.zeros(len(known), *mask.shape, device=self.device)
        labels = torch.tensor(objects, device=self.device)[:, None, None]
        given = mask == labels
        merged[: len(prob) - 1] = prob[1:].masked_fill(given.any(dim=0), 0)
        channels = torch.tensor([known.index(label) for label in objects], device=self.device)
        merged[channels] = given.float()
        return aggregate(merged[None]).softmax(dim=1)[0]


def load_model(
    path: str | Path = LIGHT_WEIGHTS, *, device: str | torch.device | None = None, exact: bool = False
) -> Network:
    """Load the network of a checkpoint, ready for inference.

    Batch norm is folded into the convolutions (``Network.optimize_``); to train or save the network, use
    ``model.load_network``. A core around the network uses the settings that the checkpoint recommends
    (``Network.recommended``) unless others are given.

    Args:
        path: a published checkpoint or one of our own; by default the light one that comes with this repository.
        device: by default the GPU, if there is one.
        exact: use direct convolutions on a CPU; they are slower and have smaller rounding errors.

    Raises:
        CheckpointError: the file is missing or unusable.
    """
    return load_network(path, device=choose_device(device)).optimize_(exact=exact)


def _described(found: object) -> str:
    return f'{found.dtype} {list(found.shape)}' if isinstance(found, Tensor) else f'{type(found).__name__}, no tensor'


def _check_labels(mask: Tensor, objects: Sequence[int] | None) -> list[int]:
    """Check an annotation, and return its labels without the background."""
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.is_floating_point() or mask.is_complex():
        raise InputError(f'mask: expected integer labels [H, W], found {_described(mask)}')
    present = [int(label) for label in mask.unique().tolist() if label != 0]
    try:
        labels = present if objects is None else list(dict.fromkeys(index(label) for label in objects))
    except TypeError as error:
        raise InputError(f'objects: expected a list of labels, found {objects!r}') from error
    for label in (*present, *labels):
        if not 1 <= label <= 255:
            raise InputError(f'mask: labels are 1 to 255 (0 is the background), found {label}')
    return labels
