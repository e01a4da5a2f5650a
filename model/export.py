"""Exports a network as ONNX files, one for each of its functions, to be run without PyTorch.

The tensors between them are float32, with the names and shapes of ``TENSORS``. The metadata of every file say which
network it is of, and the settings of the export, so that files of different networks are not used together.
"""

import copy
import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.onnx.operators import shape_as_tensor

from model.memory import similarity
from model.network import Network, Query, fold_batch_norm
from util.errors import MissingPackageError
from util.files import atomic_folder

OPSET = 17

TENSORS = {
    'image': ('1 3 H W', 'RGB, normalised by the mean and deviation of ImageNet; H and W are multiples of 16'),
    'masks': ('1 K H W', 'probabilities of the objects in this image'),
    'key': ('1 Ck h w', 'key of the image; h = H / 16, w = W / 16'),
    'thin': ('1 Cv h w', 'features of the image for the decoder, which gets them beside the readout'),
    'f16': ('1 C16 h w', 'features at stride 16'),
    'f8': ('1 C8 h8 w8', 'features at stride 8'),
    'f4': ('1 C4 h4 w4', 'features at stride 4'),
    'memory_key': ('T G Ck hm wm', 'keys of T memory frames (encode_memory: T = 1); G is 1 with shared keys, else K'),
    'memory_value': ('T K Cv hm wm', 'values of T memory frames'),
    'readout': ('1 K Cv h w', 'what the memory holds for each position of the image'),
    'logits': ('1 K H W', 'their sigmoid is the probability of each object alone'),
}
"""Shape and meaning of every input and output. In ``read``, ``h`` is less than ``hm`` if only some rows are read."""

CHANNELS = {'1', '3', 'Ck', 'Cv', 'C16', 'C8', 'C4'}  # sizes that a network fixes; all others may vary


def encode_query(network: Network, image: Tensor) -> tuple[Tensor, ...]:
    return network.encode_query(image)


def encode_memory(network: Network, image: Tensor, masks: Tensor, *query: Tensor) -> tuple[Tensor, ...]:
    return network.encode_memory(image, Query(*query), masks)


def decode(network: Network, readout: Tensor, *query: Tensor) -> tuple[Tensor, ...]:
    return (network.decode(readout, Query(*query)),)


def read(
    network: Network, memory_key: Tensor, memory_value: Tensor, key: Tensor, *, top_k: int | None
) -> tuple[Tensor, ...]:
    """The read of inference (Eq. 1 to 5, supplementary F.2), as ``inference.MemoryBank`` does it, in one piece."""
    keys = memory_key.permute(1, 0, 3, 4, 2).flatten(1, 3)  # [G, N, Ck]
    affinity = similarity(keys, key.flatten(2).transpose(1, 2), metric=network.similarity)  # [G, Q, N]
    # A row holds the values of all objects if they share the keys, [1, N, K Cv], or else those of one, [K, N, Cv].
    values = memory_value.unflatten(1, (1, -1) if network.shared_keys else (-1, 1))
    values = values.permute(1, 0, 4, 5, 2, 3).flatten(4).flatten(1, 3)
    if top_k is None:
        readout = affinity.softmax(dim=-1) @ values
    else:
        # Sizes are tensors here, so that the ONNX file computes them anew: the memory of a small video may have fewer
        # positions than top_k.
        groups, _, positions = shape_as_tensor(affinity)
        best, rows = affinity.topk(torch.minimum(positions, torch.tensor(top_k)), dim=-1)  # type: ignore[arg-type]
        rows = rows + positions * torch.arange(groups)[:, None, None]
        readout = (best.softmax(dim=-1).unsqueeze(2) @ values.flatten(0, 1)[rows]).squeeze(2)
    readout = readout.transpose(1, 2).unflatten(1, (-1, memory_value.shape[2])).flatten(0, 1)  # [K, Cv, Q]
    return (readout.unflatten(2, key.shape[2:])[None],)


FUNCTIONS: dict[str, tuple[Callable[..., tuple[Tensor, ...]], tuple[str, ...], tuple[str, ...]]] = {
    'encode_query': (encode_query, ('image',), Query._fields),
    'encode_memory': (encode_memory, ('image', 'masks', *Query._fields), ('memory_key', 'memory_value')),
    'read': (read, ('memory_key', 'memory_value', 'key'), ('readout',)),
    'decode': (decode, ('readout', *Query._fields), ('logits',)),
}
"""What each file computes, its inputs and its outputs. A file does not have the inputs that its network ignores."""


def export_network(
    network: Network, folder: str | Path, *, settings: Mapping[str, object], top_k: int | None, half: bool = False
) -> None:
    """Write ``encode_query.onnx``, ``encode_memory.onnx``, ``read.onnx`` and ``decode.onnx``: all of them or nothing.

    Args:
        folder: a folder that does not exist yet.
        settings: entries of the metadata that say which network this is and how to use it. Each is written as JSON.
        top_k: memory positions that a position of the image reads; ``None``: all.
        half: weights and the computation in encoders and decoder are float16. The read is in float32, since it
            squares the keys.

    Raises:
        MissingPackageError: ``onnx`` is not installed.
        OSError: the folder exists, or cannot be written.
    """
    import_onnx()
    network = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    fold_batch_norm(network)
    network.to(torch.half if half else torch.float)
    about = dict(settings) | {
        'network': dataclasses.asdict(network.config),
        'precision': 'float16' if half else 'float32',
        'shared_keys': network.shared_keys,
        'padding_colour': network.padding_colour,
        'objects_in_padding': network.objects_in_padding,
    }
    with atomic_folder(folder) as temporary, torch.inference_mode():
        examples = _example_tensors(network)
        for name, (function, inputs, outputs) in FUNCTIONS.items():
            module = _Function(network, function, **({'top_k': top_k} if function is read else {}))
            arguments = tuple(examples[each] for each in inputs)
            _export(module, arguments, temporary / f'{name}.onnx', inputs, outputs, about | {'function': name})


def import_onnx() -> ModuleType:
    """The package ``onnx``.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingPackageError(
            f'an export needs the package onnx, which cannot be imported ({error}): '
            'pip install -r requirements-extras.txt'
        ) from error
    return onnx


class _Function(nn.Module):
    """A function of the network with float32 inputs and outputs, whatever the precision of its weights."""

    def __init__(self, network: Network, function: Callable[..., tuple[Tensor, ...]], **options):
        super().__init__()
        self.network, self.function, self.options = network, function, options
        self.dtype = torch.float if function is read else next(network.parameters()).dtype

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = self.function(self.network, *(each.to(self.dtype) for each in tensors), **self.options)
        return tuple(each.float() for each in found)


def _example_tensors(network: Network) -> dict[str, Tensor]:
    """Inputs of every function, for two objects and two memory frames."""
    masks = torch.rand(1, 2, 64, 96)
    image = torch.rand(1, 3, 64, 96)
    query = _Function(network, encode_query)(image)
    key, value = _Function(network, encode_memory)(image, masks, *query)
    return dict(zip(Query._fields, query, strict=True)) | {
        'image': image,
        'masks': masks,
        'memory_key': torch.cat([key, key]),
        'memory_value': torch.cat([value, value]),
        'readout': value,
    }


def _export(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    path: Path,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    about: Mapping[str, object],
) -> None:
    onnx = import_onnx()
    free = {
        name: {axis: size for axis, size in enumerate(TENSORS[name][0].split()) if size not in CHANNELS}
        for name in (*inputs, *outputs)
    }
    for name in outputs:
        free[name].pop(0, None)  # every output is that of one frame
    with warnings.catch_warnings():
        # This exporter warns that a newer one exists, and that it treats sizes as constants. The only such size is the
        # batch size, which is 1. It is the better exporter here: it needs a second for a network and no other package,
        # and gives the same graphs with PyTorch 2.6 as with 2.14. The newer one (dynamo=True) needs one and a half
        # minutes, and with 2.6 it warns of conditions on the sizes.
        warnings.simplefilter('ignore')
        torch.onnx.export(
            module,
            arguments,
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=free,
        )
    model = onnx.load(path)
    used = {name for node in model.graph.node for name in node.input}
    for each in list(model.graph.input):
        if each.name not in used:
            model.graph.input.remove(each)
    tensors = {each.name: '[{}] {}'.format(*TENSORS[each.name]) for each in (*model.graph.input, *model.graph.output)}
    metadata = {name: json.dumps(value) for name, value in (dict(about) | {'tensors': tensors}).items()}
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
