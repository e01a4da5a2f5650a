"""The memory of one video: it stores keys and values of past frames, and reads them for a query."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from inference.eviction import LeastUsed
from model.memory import add_kernel, best_query, read_sparse, similarity, top_k_weights
from model.similarity import SIMILARITIES, check_similarity

SCRATCH_BYTES = 64 * 2**20  # limit for the similarities that are held at a time, whatever the length of the video
GROWTH = 1.5  # factor by which a full buffer grows


class _Rows:
    """A preallocated buffer with P rows for each slot; a slot holds one memory frame. It grows geometrically."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.positions = 0  # P
        self.buffer = torch.empty(0)  # the first rows decide its shape, type and device

    def write(self, slot: int, rows: Tensor) -> None:
        """Write ``rows [P, ...]`` into slot ``slot``."""
        P = self.positions = len(rows)
        if not len(self.buffer):
            self.buffer = rows.new_empty(max(self.capacity, slot + 1) * P, *rows.shape[1:])
        elif (slot + 1) * P > len(self.buffer):
            old = self.buffer[: slot * P]
            slots = max(slot + 1, int(GROWTH * len(self.buffer) / P))
            self.buffer = rows.new_empty(slots * P, *rows.shape[1:])
            self.buffer[: slot * P] = old
        self.buffer[slot * P : (slot + 1) * P] = rows

    def read(self, slot: int) -> list[Tensor]:
        """A copy of the rows of a slot."""
        return [self.buffer[slot * self.positions : (slot + 1) * self.positions].clone()]

    def restore(self, slot: int, tensors: Iterator[Tensor]) -> None:
        """Write the result of ``read`` into a slot."""
        self.write(slot, next(tensors))

    def copy(self, source: int, target: int) -> None:
        """Copy slot ``source`` over slot ``target``."""
        P = self.positions
        self.buffer[target * P : (target + 1) * P] = self.buffer[source * P : (source + 1) * P]

    def drop_first(self, slots: int) -> None:
        """Drop the first ``slots`` slots and free their space; the others move to the front."""
        self.buffer = self.buffer[slots * self.positions :].clone()

    def drop_column(self, column: int) -> None:
        """Drop object ``column`` from every row; rows are ``[K, ...]``."""
        self.buffer = torch.cat([self.buffer[:, :column], self.buffer[:, column + 1 :]], dim=1)

    @property
    def nbytes(self) -> int:
        return self.buffer.nbytes


class _Keys:
    """Stores keys as rows ``[N, G, Ck]``, and the term of the similarity that depends on them alone, ``[N, G]``."""

    def __init__(self, capacity: int, *, metric: str):
        self.metric = metric
        self.rows = _Rows(capacity)
        self.bias = _Rows(capacity)  # stays empty if the similarity has no such term

    def write(self, slot: int, key: Tensor) -> None:
        """Write ``key [G, Ck, h, w]`` into a slot, in float32, since the similarity squares it."""
        rows = key.float().flatten(2).permute(2, 0, 1)
        self.rows.write(slot, rows)
        bias = SIMILARITIES[self.metric].bias(rows)
        if bias is not None:
            self.bias.write(slot, bias)

    def read(self, slot: int) -> list[Tensor]:
        """Copies of the keys of a slot and of their bias, which would be rounded differently if computed again."""
        return self.rows.read(slot) + (self.bias.read(slot) if len(self.bias.buffer) else [])

    def restore(self, slot: int, tensors: Iterator[Tensor]) -> None:
        rows = next(tensors)
        self.rows.write(slot, rows)
        if SIMILARITIES[self.metric].bias(rows) is not None:
            self.bias.write(slot, next(tensors))

    def copy(self, source: int, target: int) -> None:
        for store in self._stores():
            store.copy(source, target)

    def drop_first(self, slots: int) -> None:
        for store in self._stores():
            store.drop_first(slots)

    def drop_column(self, column: int) -> None:
        for store in self._stores():
            store.drop_column(column)

    def _stores(self) -> list[_Rows]:
        return [self.rows, self.bias] if len(self.bias.buffer) else [self.rows]

    def similarity(self, query: Tensor, positions: int, scratch: Tensor) -> Tensor:
        """``query [1, Q, Ck] -> [G, Q, positions]``, a view of ``scratch``."""
        keys = self.rows.buffer[:positions].transpose(0, 1)
        bias = self.bias.buffer[:positions].T if len(self.bias.buffer) else None
        G, Q = len(keys), query.shape[1]
        out = scratch[: G * Q * positions].view(G, Q, positions)
        return similarity(keys, query, metric=self.metric, bias=bias, out=out)

    def best_query(self, query: Tensor, positions: int, scratch: Tensor) -> Tensor:
        """The best query position of each of the first ``positions``: ``query [1, Q, Ck] -> [G, positions]``."""
        keys = self.rows.buffer[:positions].transpose(0, 1)
        G, Q = len(keys), query.shape[1]
        parts = [
            best_query(part, query, metric=self.metric, out=scratch[: part.shape[1] * G * Q].view(G, part.shape[1], Q))
            for part in keys.split(scratch.numel() // (G * Q), dim=1)
        ]
        return torch.cat(parts, dim=1)

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.bias.nbytes


class _Group:
    """Objects that joined at the same frame. Their values ``[N, K, Cv]`` from that frame on are in one buffer."""

    def __init__(self, start: int, size: int, capacity: int, *, own_keys: _Keys | None):
        self.start = start  # the memory's slot at which the objects joined
        self.size = size  # K
        self.values = _Rows(capacity)
        self.own_keys = own_keys  # None if the keys are shared

    def slots_of(self, indices: Tensor) -> Tensor:
        """The memory's slots in which the group's positions ``indices`` are."""
        return self.start + indices // self.values.positions


class MemoryBank:
    """Stores the memory frames in order. An object reads only the frames since it joined.

    Objects that joined together form a group, and may leave one by one. With shared keys (STCN) the keys are
    stored once and the similarity is computed once for all objects; top-k and the gather of values run once per
    group. Without shared keys (STM), every object has its own. The last slot may be temporary: the next ``add``
    replaces it.

    Args:
        shared_keys: whether a frame has one key for all objects.
        top_k: how many memory positions each query position reads; ``None`` reads all of them.
        metric: a name in ``model.similarity.SIMILARITIES``.
        kernel_sigma: standard deviation of the kernelised read, in positions; ``None``: no kernel.
        max_frames: the largest number of memory frames, without a temporary one. Beyond it a frame is evicted,
            see :class:`inference.eviction.LeastUsed`; protected frames stay, whatever their number.
        capacity: how many memory frames to reserve space for; the space grows when there are more.
        value_dtype: the type in which values are stored; ``None`` keeps their own. Keys are always float32.
        scratch_bytes: limit for the similarities that are held at a time, in bytes.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        shared_keys: bool = True,
        top_k: int | None = 20,
        metric: str = 'l2',
        kernel_sigma: float | None = None,
        max_frames: int | None = None,
        capacity: int = 8,
        value_dtype: torch.dtype | None = None,
        scratch_bytes: int = SCRATCH_BYTES,
    ):
        check_similarity(metric)
        if top_k is not None and top_k < 1:
            raise ValueError(f'top_k: expected a positive number or None, found {top_k}')
        if kernel_sigma is not None and not kernel_sigma > 0:
            raise ValueError(f'kernel_sigma: expected a positive number or None, found {kernel_sigma}')
        if max_frames is not None and max_frames < 1:
            raise ValueError(f'max_frames: expected a positive number or None, found {max_frames}')
        self.top_k = top_k
        self.metric = metric
        self.kernel_sigma = kernel_sigma
        self.max_frames = max_frames
        # While a frame to evict is chosen, there is one more than allowed.
        self.capacity = max(capacity if max_frames is None else min(capacity, max_frames + 1), 1)
        self.value_dtype = value_dtype
        self.scratch_bytes = scratch_bytes
        self.shared_keys = shared_keys
        self._scratch = torch.empty(0)
        self._added = 0
        self._forget()

    def _forget(self) -> None:
        """Empty the memory of all objects and frames."""
        self.permanent = 0  # number of slots that stay
        self.temporary = False  # whether a further slot holds a temporary frame
        self.serials: list[int] = []  # a number for each permanent slot; different contents never share a number
        self._shared_keys = _Keys(self.capacity, metric=self.metric) if self.shared_keys else None
        self._groups: list[_Group] = []
        self.eviction = None if self.max_frames is None else LeastUsed(self.max_frames)

    def __len__(self) -> int:
        """The number of memory frames, including a temporary one."""
        return self.permanent + self.temporary

    @property
    def num_objects(self) -> int:
        return sum(group.size for group in self._groups)

    @property
    def nbytes(self) -> int:
        """Bytes of the key and value stores, reserved space included."""
        return sum(store.nbytes for store, _ in self._stores())

    def _stores(self) -> Iterator[tuple[_Keys | _Rows, int]]:
        """Every store, with the slot at which it starts."""
        if self._shared_keys:
            yield self._shared_keys, 0
        for group in self._groups:
            yield group.values, group.start
            if group.own_keys:
                yield group.own_keys, group.start

    def add(self, key: Tensor, value: Tensor, *, permanent: bool = True, protected: bool = False) -> None:
        """Memorise a frame for all objects; it replaces a temporary frame.

        ``key [1 or K, Ck, h, w], value [K, Cv, h, w]``, objects in the order in which they joined. Objects
        beyond those known so far join with this frame, which must be permanent and is then protected. A
        protected frame is never evicted.
        """
        slot = self.permanent
        joining = len(value) - self.num_objects
        if joining < 0 or (joining and not permanent):
            raise ValueError(
                f'value: found {len(value)} objects at a {"" if permanent else "temporary "}memory frame, but '
                f'{self.num_objects} in the memory: objects only leave by remove, and only join at permanent frames'
            )
        if joining:
            capacity = max(self.capacity - slot, 1)
            own_keys = None if self._shared_keys else _Keys(capacity, metric=self.metric)
            self._groups.append(_Group(slot, joining, capacity, own_keys=own_keys))
        if self._shared_keys:
            self._shared_keys.write(slot, key)
        first = 0
        for group in self._groups:
            objects = slice(first, first + group.size)
            first += group.size
            rows = value[objects].flatten(2).permute(2, 0, 1)
            group.values.write(slot - group.start, rows.to(self.value_dtype or rows.dtype))
            if group.own_keys:
                group.own_keys.write(slot - group.start, key[objects])
        if permanent:
            self.serials.append(self._added)
            self._added += 1
        self.permanent += permanent
        self.temporary = not permanent
        if permanent and self.eviction is not None:
            self.eviction.add(protected=protected or bool(joining), device=value.device)
            least_used = self.eviction.choose()
            if least_used is not None:
                self.eviction.keep(self._evict(least_used))

    def remove(self, index: int) -> None:
        """Drop object ``index``, counted in the order of joining, and the frames that no other object reads."""
        for group in self._groups:
            if index < group.size:
                break
            index -= group.size
        else:
            raise IndexError(f'index: expected less than {self.num_objects}, the objects in the memory')
        self.serials = list(range(self._added, self._added + self.permanent))
        self._added += self.permanent
        group.size -= 1
        if group.size:
            group.values.drop_column(index)
            if group.own_keys:
                group.own_keys.drop_column(index)
            return
        self._groups.remove(group)
        if not self._groups:
            self._forget()
        elif unread := self._groups[0].start:
            if self._shared_keys:
                self._shared_keys.drop_first(unread)
            for other in self._groups:
                other.start -= unread
            if self.eviction is not None:
                self.eviction.keep(list(range(unread, self.permanent)))
            self.permanent -= unread
            self.serials = self.serials[unread:]

    def _evict(self, slot: int) -> list[int]:
        """Drop a frame. Returns the slots of the other frames in their new order."""
        # The newest frame moves into the free slot, so that only one frame is copied. If an object joined after that
        # slot, it would no longer read the moved frame; then all later frames move up by one instead.
        kept = [other for other in range(self.permanent) if other != slot]
        if slot >= self._groups[-1].start:
            kept.insert(slot, kept.pop())
        for target, source in enumerate(kept):
            if source != target:
                for store, start in self._stores():
                    if slot >= start:
                        store.copy(source - start, target - start)
        for group in self._groups:
            group.start -= group.start > slot
        self.permanent = len(kept)
        self.serials = [self.serials[other] for other in kept]
        return kept

    def state(self) -> dict[str, Any]:
        """The state for :meth:`restore`, without the :meth:`rows`: numbers and lists of numbers."""
        return {
            'permanent': self.permanent,
            'temporary': self.temporary,
            'groups': [(group.start, group.size) for group in self._groups],
            'serials': self.serials,
            'added': self._added,
            'scratch': self._scratch.numel(),  # it decides the chunks of a read, and so the rounding
            'eviction': None if self.eviction is None else self.eviction.state(),
        }

    def rows(self, slot: int) -> list[Tensor]:
        """Copies of the keys and values of a memory frame."""
        return [rows for store, start in self._stores() if slot >= start for rows in store.read(slot - start)]

    def restore(self, state: dict[str, Any], rows: Iterable[Sequence[Tensor]], device: torch.device) -> None:
        """Fill an empty memory with the state and the rows of another one, bit for bit."""
        self._groups = []
        for start, size in state['groups']:
            capacity = max(self.capacity - start, 1)
            own_keys = None if self._shared_keys else _Keys(capacity, metric=self.metric)
            self._groups.append(_Group(start, size, capacity, own_keys=own_keys))
        for slot, tensors in enumerate(rows):
            left = iter([each.to(device) for each in tensors])
            for store, start in self._stores():
                if slot >= start:
                    store.restore(slot - start, left)
        self.permanent, self.temporary = state['permanent'], state['temporary']
        self.serials, self._added = list(state['serials']), state['added']
        self._scratch = torch.empty(state['scratch'], device=device)
        if self.eviction is not None:
            self.eviction.restore(state['eviction'], device)

    def read(self, query_key: Tensor) -> Tensor:
        """``query_key [Ck, h, w] -> readout [K, Cv, h, w]``, in the precision of the query.

        Queries are processed in chunks that keep the similarities below ``scratch_bytes``.
        """
        if not len(self):
            raise ValueError('the memory is empty: no frame was memorised so far; the last of a video never is')
        # The similarity squares the keys, for which half precision is not enough.
        with torch.autocast(query_key.device.type, enabled=False):
            return self._read(query_key).to(query_key.dtype)

    def _read(self, query_key: Tensor) -> Tensor:
        h, w = query_key.shape[-2:]
        Q = P = h * w
        query = query_key.float().flatten(1).T.contiguous().unsqueeze(0)
        keys_at_once = 1 if self._shared_keys else max(group.size for group in self._groups)
        row = len(self) * P * keys_at_once  # similarities of one query position
        if self._scratch.numel() < row:
            self._scratch = query.new_empty(max(self.scratch_bytes // query.element_size(), row))
        chunk = min(self._scratch.numel() // row, Q)

        # The kernel needs each memory position's best match in the whole frame, before the frame is split into chunks.
        best = (
            {}
            if self.kernel_sigma is None
            else {
                keys: keys.best_query(query, (len(self) - start) * P, self._scratch)
                for keys, start in self._stores()
                if isinstance(keys, _Keys)
            }
        )
        grid = torch.arange(Q, device=query.device)

        def similarity_of(keys: _Keys, part: slice, positions: int) -> Tensor:
            """``[1 or K, q, positions]``, a view of the scratch."""
            found = keys.similarity(query[:, part], positions, self._scratch)
            if self.kernel_sigma is not None:
                add_kernel(found, best[keys], grid[part], width=w, sigma=self.kernel_sigma)
            return found

        readouts = [group.values.buffer.new_empty(Q, *group.values.buffer.shape[1:]) for group in self._groups]
        for first in range(0, Q, chunk):
            part = slice(first, first + chunk)
            if self._shared_keys:
                shared = similarity_of(self._shared_keys, part, len(self) * P)
            for group, readout in zip(self._groups, readouts, strict=True):
                positions = (len(self) - group.start) * P
                affinity = (
                    similarity_of(group.own_keys, part, positions)
                    if group.own_keys
                    else shared[..., group.start * P :]
                )
                readout[part] = self._weigh(affinity, group, positions)
        if self.eviction is not None:
            self.eviction.finish_read()
        readout = readouts[0] if len(readouts) == 1 else torch.cat(readouts, dim=1)
        return readout.permute(1, 2, 0).unflatten(2, (h, w))

    def _weigh(self, affinity: Tensor, group: _Group, positions: int) -> Tensor:
        """``affinity [1 or K, q, N] -> [q, K, Cv]``, from the first N positions of the group's values."""
        values = group.values.buffer[:positions]
        K, Cv = values.shape[1:]
        if self.top_k is None:
            weights = affinity.softmax(dim=-1)
            if self.eviction is not None:
                everything = torch.arange(positions, device=weights.device)
                self.eviction.count(group.slots_of(everything), weights.sum(dim=(0, 1)) * (K / len(weights)))
            weights = weights.to(values.dtype)
            if len(weights) == 1:
                return (weights[0] @ values.flatten(1)).unflatten(1, (K, Cv))
            return (weights @ values.transpose(0, 1)).transpose(0, 1)
        weights, indices = top_k_weights(affinity, self.top_k, frames=len(self) - group.start)
        if self.eviction is not None:
            self.eviction.count(group.slots_of(indices), weights * (K / len(weights)))
        if len(weights) == 1:  # with shared keys, a row holds the values of all objects
            return read_sparse(weights[0], indices[0], values.flatten(1)).unflatten(1, (K, Cv))
        # Otherwise each object has its own rows: position n of object k is row n K + k.
        rows = indices * K + torch.arange(K, device=indices.device)[:, None, None]
        readout = read_sparse(weights.flatten(0, 1), rows.flatten(0, 1), values.flatten(0, 1))
        return readout.unflatten(0, (K, -1)).transpose(0, 1)
