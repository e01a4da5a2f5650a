"""Checkpoints: the published layouts and our own, through one function.

A file is one of

- a state dict in a published layout: STCN, multi-object or stage 0, or STM (recognised by its names and shapes);
- a training checkpoint, ours or the release's, with the state dict under ``network``; ours may also have an average of
  the weights over past iterations under ``average``, which is the one to take unless training goes on;
- our own: ``{'config': {...}, 'network': {...}}``, from which the network is rebuilt: ``config['arch']`` names its
  class;

each with or without the ``module.`` prefix of a parallel wrapper. Our own may also carry ``recommended``: the
settings of inference with which the network was selected, on videos held aside.
"""

import codecs
import dataclasses
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.build import build_network
from model.network import Network
from model.variants import VARIANTS, STCNConfig, STMConfig, config_from
from util.errors import UserError, cause_of, foreign_call
from util.files import atomic_path

RECOMMENDED: dict[str, tuple[type[int], int]] = {
    'mem_every': (int, 0),
    'include_last': (bool, False),
    'top': (int, 0),
    'size': (int, 0),
}
"""The settings that a checkpoint may recommend, each with its type and its smallest value. As in the flags, 0 means to
memorise only annotated frames (``mem_every``), read all positions (``top``) or keep the frames' size (``size``)."""

OTHER_FILES = {
    b'\x1f\x8b': 'a file packed by gzip. Unpack it with gunzip; inside may be the checkpoint, or a web page.',
    b'\x93NUMPY': 'an array of numpy. Save a dictionary of tensors with torch.save().',
    b'\x89PNG': 'an image. Give the file of a network.',
    b'\xff\xd8\xff': 'an image. Give the file of a network.',
    b'\x89HDF': 'an HDF5 file, as Keras writes it.',
}
"""What other files are, by their first bytes, and what to do about them."""

MAX_HEADER = 10**8  # bytes, of a safetensors file

NOT_COMPARED = 'num_batches_tracked'  # batch norm's counter; never used, absent from old files


class CheckpointError(UserError, RuntimeError):
    """A file is not a usable checkpoint. The message says what is wrong with it and what was expected."""


def load_network(
    path: str | Path,
    *,
    device: torch.device | str = 'cpu',
    widen: Literal['zeros', 'orthogonal'] | None = 'zeros',
) -> Network:
    """Load the network of a checkpoint file, in eval mode. From a training checkpoint, averaged weights are preferred.

    A single-object (stage 0) network gets an input channel for the masks of the other objects. ``widen`` says which
    weights this channel gets: ``'zeros'`` for inference, ``'orthogonal'`` to train on; with ``None``, the network
    stays single-object.

    Raises:
        CheckpointError: the file is missing, damaged or not that of a known network.
    """
    return network_from_checkpoint(read_checkpoint(path), path, device=device, widen=widen)


def read_checkpoint(path: str | Path) -> dict:
    """The content of a checkpoint file, on the CPU; nothing in it is executed (``weights_only``)."""
    if not Path(path).is_file():
        raise CheckpointError(
            f'{path}: no such checkpoint file. weights/stcn_light.pth is part of the repository; "python '
            'scripts/download.py weights" puts the published networks into saves/.'
        )
    unreadable = f'{path}: unreadable; truncated, or not a PyTorch checkpoint'
    with foreign_call(CheckpointError, unreadable):
        other = _other_content(path)
    if other:
        raise CheckpointError(f'{path}: expected a checkpoint, found {other}')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about pickles of other programs, which are refused anyway
            content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's own message would tell the user how to load such a file in spite of the danger.
        or_damage = '' if zipfile.is_zipfile(path) else ', or a damaged file'
        raise CheckpointError(
            f'{path}: expected a checkpoint, found objects other than tensors{or_damage}. These are not loaded: they '
            'may run any code. Save the state_dict() of the network instead.'
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # its class depends on what is damaged: zip directory, pickle or tensors
        cause = cause_of(error).partition('. ')[0]  # the rest is advice that does not help here
        raise CheckpointError(f'{unreadable} ({cause})') from error
    with foreign_call(CheckpointError, unreadable):
        damaged = _damaged_record(path)
    if damaged:
        raise CheckpointError(f'{path}: damaged, the checksum of its record {damaged} is wrong; fetch it again')
    if not isinstance(content, dict):
        raise CheckpointError(f'{path}: expected a dictionary of tensors, found {type(content).__name__}')
    return content


def _other_content(path: str | Path) -> str | None:
    """Describe a file that cannot be a checkpoint, with advice what to do; ``None`` if it may be one."""
    with open(path, 'rb') as file:
        begin = file.read(512)
    if not begin:
        return 'an empty file. Download it again.'
    for magic, kind in OTHER_FILES.items():
        if begin.startswith(magic):
            return kind
    if begin[8:9] == b'{' and int.from_bytes(begin[:8], 'little') < MAX_HEADER:
        return 'a safetensors file. Save its tensors with torch.save().'
    if begin.startswith(b'PK'):
        return _other_zip(path)
    text = begin.decode(
        'utf-16' if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else 'utf-8', 'ignore'
    )
    text = text.lstrip('\ufeff \t\r\n')
    if text.startswith('version https://git-lfs'):
        return "a pointer of git-lfs. Fetch the file itself with 'git lfs pull'."
    if text.startswith('<'):
        return 'a web page, perhaps one that says why there is no download. Download the file in a browser.'
    if all(character.isprintable() or character.isspace() for character in text):
        return f'text, which may say what went wrong: {(text.splitlines() or [""])[0][:80]!r}. Download it again.'
    return None


def _other_zip(path: str | Path) -> str | None:
    """As :func:`_other_content`, for a zip archive. A checkpoint is a zip archive, too."""
    if not zipfile.is_zipfile(path):
        return 'only the beginning of one. Download it again.'
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
    if any(name.endswith('/constants.pkl') for name in names):
        return 'a TorchScript module. Save the state_dict() of the network instead.'
    if not any(name.endswith('/data.pkl') for name in names):
        return f'an archive of other files ({", ".join(names[:3])}). If the checkpoint is one of them, unpack it.'
    return None


def _damaged_record(path: str | Path) -> str | None:
    """The first record with a wrong checksum in a file. ``torch.load`` does not compare checksums."""
    if not zipfile.is_zipfile(path):
        return None  # from before PyTorch 1.6, without checksums
    with zipfile.ZipFile(path) as file:
        return file.testzip()


def network_from_checkpoint(
    content: dict,
    path: str | Path,
    *,
    device: torch.device | str = 'cpu',
    widen: Literal['zeros', 'orthogonal'] | None = 'zeros',
    averaged: bool = True,
) -> Network:
    """As :func:`load_network`, for a file that has been read already.

    ``averaged``: take the average of the weights where there is one; ``False`` for the weights that training continues
    with.
    """
    name = 'average' if averaged and 'average' in content else 'network'
    state = content.get(name, content)
    if not isinstance(state, dict):
        raise CheckpointError(f'{path}: "{name}" holds a {type(state).__name__}, expected a state dict')
    state = {str(name).removeprefix('module.'): value for name, value in state.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(
            f'{path}: holds no tensors, so no network; expected them at the top or under "network", found the entries '
            f'{", ".join(map(repr, list(content)[:5])) or "none"}'
        )
    _check_tensors(state, path)

    network = _network_of(content, state, path)
    config = network.config
    if config.single_object and widen:
        state = network.widened(state, init=widen)
        network = _on_meta(dataclasses.replace(config, single_object=False))

    for name, value in network.state_dict().items():
        if name.endswith(NOT_COMPARED):
            state.setdefault(name, torch.zeros(value.shape, dtype=value.dtype))
    network.to_empty(device=device)
    network.load_state_dict(state, strict=False)  # compared above
    network.recommended = _check_recommended(content.get('recommended', {}), path)
    return network.eval()


def save_network(
    path: str | Path,
    network: Network,
    *,
    dtype: torch.dtype | None = None,
    recommended: Mapping[str, object] | None = None,
    **notes: Any,
) -> None:
    """Write the weights and the configuration that rebuilds the network, atomically; ``dtype`` converts the weights.

    ``recommended`` are values for the names in ``RECOMMENDED``. Inference uses them unless it is told otherwise. By
    default they are those of the file that the network came from. To write them into an existing file:
    ``save_network(path, load_network(path), recommended={'mem_every': 3, 'size': 360})``.
    ``notes`` are other plain values to keep in the file; loading the network ignores them.
    """
    recommended = network.recommended if recommended is None else recommended
    if recommended:
        notes['recommended'] = dict(_check_recommended(recommended, path))
    state = {
        name: value.to('cpu', dtype if value.is_floating_point() else None)
        for name, value in network.state_dict().items()
    }
    with atomic_path(path) as temporary:
        torch.save({'config': dataclasses.asdict(network.config), 'network': state, **notes}, temporary)


def _check_recommended(values: object, path: str | Path) -> Mapping[str, int]:
    if isinstance(values, Mapping) and all(_is_recommendation(name, value) for name, value in values.items()):
        return values
    raise CheckpointError(f'{path}: recommends {values!r}; expected some of {", ".join(RECOMMENDED)}')


def _is_recommendation(name: str, value: object) -> bool:
    if name not in RECOMMENDED or not isinstance(value, int):
        return False
    kind, least = RECOMMENDED[name]
    return type(value) is kind and value >= least


def _check_tensors(state: dict[str, Tensor], path: str | Path) -> None:
    """Refuse tensors that cannot be weights, before memory is allocated: a small file can claim any size."""
    for name, value in state.items():
        if value.layout is not torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            raise CheckpointError(
                f'{path}: {name}: expected a plain tensor, found {value.dtype}, {value.layout}, on {value.device}'
            )
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in state.values()}
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    if claimed > sum(storages.values()):
        raise CheckpointError(f'{path}: its tensors claim {claimed} bytes, the file holds {sum(storages.values())}')
    for name, value in state.items():
        if value.is_floating_point() and not value.float().isfinite().all():
            raise CheckpointError(
                f'{path}: {name}: expected finite numbers, found infinity or NaN, as a training that '
                'diverged leaves them; take an earlier checkpoint'
            )


def _network_of(content: dict, state: dict[str, Tensor], path: str | Path) -> Network:
    """The network that these tensors fit, without memory for its weights."""
    if 'config' in content:
        try:
            network = _on_meta(config_from(content['config']))
        except Exception as error:
            raise CheckpointError(f'{path}: its configuration is not understood: {error!r}') from error
        if different := differences(network, state):
            raise CheckpointError(f'{path}: the tensors do not fit the network of its configuration\n' + different)
        return network
    networks, problems = {}, {}
    for name, config in VARIANTS.items():
        networks[name] = _on_meta(config)
        problems[name] = differences(networks[name], state)
        if not problems[name]:
            return networks[name]
    closest = min(problems, key=lambda name: len(problems[name]))
    known = networks[closest].state_dict().keys() & state.keys()
    if 2 * len(known) < len(state):
        raise CheckpointError(
            f'{path}: expected the weights of STCN or STM, found those of another network: only {len(known)} of '
            f'{len(state)} tensors ({", ".join(list(state)[:3])} ...) have names that {closest!r} has, too'
        )
    raise CheckpointError(
        f'{path}: matches no known network; the closest is {closest!r}, from which it differs:\n' + problems[closest]
    )


def _on_meta(config: STCNConfig | STMConfig) -> Network:
    """The network without memory for its weights."""
    with torch.device('meta'):
        return build_network(config)


def differences(network: nn.Module, state: Mapping[str, Tensor]) -> str:
    """The differences between a network and a state dict, a line each; empty where there are none."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    lines = []
    for name, shape in expected.items():
        if name not in state:
            if not name.endswith(NOT_COMPARED):
                lines.append(f'  missing: {name} {shape}')
        elif tuple(state[name].shape) != shape:
            lines.append(f'  mis-shaped: {name} is {tuple(state[name].shape)}, expected {shape}')
    lines += [f'  unexpected: {name} {tuple(value.shape)}' for name, value in state.items() if name not in expected]
    return '\n'.join(lines)
