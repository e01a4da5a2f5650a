"""Counts multiply-adds, moved bytes and allocated bytes by intercepting every operation."""

import weakref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
BAGS = {aten._embedding_bag, aten._embedding_bag_forward_only}


class Work(TorchDispatchMode):
    """Counts the multiply-adds and the moved bytes of the operations in its ``with`` block.

    An operation is assumed to read its inputs and write its outputs once. A gather reads only the rows or elements
    that it takes. Views move nothing.
    """

    def __init__(self):
        super().__init__()
        self.operations: list[tuple[int, int]] = []

    @property
    def multiply_adds(self) -> int:
        return sum(count for count, _ in self.operations)

    @property
    def bytes(self) -> int:
        return sum(moved for _, moved in self.operations)

    def seconds(self, multiply_adds: float, copied: float) -> float:
        """The attainable time at these rates a second: each operation takes the longer of computing and moving."""
        return sum(max(count / multiply_adds, moved / copied) for count, moved in self.operations)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = function._overloadpacket
        if packet not in flop_registry:  # in inference mode, convolutions have several names
            with self:
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = function(*args, **kwargs)
        if any(value.alias_info is not None and not value.alias_info.is_write for value in function._schema.returns):
            return result
        count = flop_registry[packet](*args, **kwargs, out_val=result) // 2 if packet in flop_registry else 0
        inputs, outputs = tensors((args, kwargs)), tensors(result)
        moved = sum(each.nbytes for each in inputs + outputs)
        if packet in BAGS:
            source, indices, *_ = inputs
            count = indices.numel() * source.shape[1]
            moved += count * source.element_size() - source.nbytes
        elif packet is aten.gather:
            moved += outputs[0].nbytes - inputs[0].nbytes
        self.operations.append((count, moved))
        return result


class Allocations(TorchDispatchMode):
    """Adds up the bytes of tensors made in its ``with`` block: those that exist now (``alive``), and the peak.

    With fake tensors nothing is computed or allocated, so that the peak of any size is known within seconds.
    """

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self.known = weakref.WeakSet()

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.alive -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tensors(result):
            self._add(tensor.untyped_storage())
        return result


def tensors(tree: object) -> list[Tensor]:
    """The tensors in nested arguments or results."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
