"""The cache's memory in the process, one array for each layer and kind.

| layout | k_cache.i                          | v_cache.i                          | a step binds |
|--------|------------------------------------|------------------------------------|--------------|
| slots  | [slots, kv_heads, C, head_dim]     | the same                           | its slots    |
| paged  | [blocks, kv_heads, head_dim, size] | [blocks, kv_heads, size, head_dim] | all blocks   |

C is the block size, the tokens that a slot holds. Arrays come zeroed from the system, which commits
a page when it is first touched; numpy would ask for huge pages, of which most is never used.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.manifest import KVEntry, LimitsEntry
from enginewright.runtime.backends.onnxruntime_session import cache_names
from enginewright.runtime.engine import BlockCopy, StepBatch
from enginewright.runtime.errors import EnginewrightError

_MAP_NORESERVE = 0x4000
"""Of Linux: address space that is no promise of memory. Python names it from 3.13 on."""

Place = tuple[int, int]
"""The range of an array's first axis that a step binds: its start, and how many."""


class CachePool(ABC):
    """The arrays, by the cache's name."""

    tensors: dict[str, NDArray[Any]]

    @abstractmethod
    def place(self, batch: StepBatch) -> Place:
        """What a step over the batch binds; the batch is one that the pool holds."""

    @abstractmethod
    def ran(self, batch: StepBatch) -> None:
        """The step's rows are written."""

    @abstractmethod
    def copy(self, copy: BlockCopy) -> None:
        """Copy tokens of a block to another."""

    @abstractmethod
    def resize(self, blocks: int, block_size: int) -> bool:
        """Hold so many blocks, as Engine.resize; returns whether the arrays have moved."""

    @abstractmethod
    def clear(self) -> None:
        """Free the memory."""


class SlotPool(CachePool):
    """Slots that grow to what the longest row needs.

    What a slot holds beyond its row's length is never read, so copying and growing leave it out.
    """

    def __init__(self, kv: KVEntry) -> None:
        self._names = cache_names(kv)
        self._kv_heads, self._head_dim = kv.kv_heads, kv.head_dim
        self.clear()

    def clear(self) -> None:
        self.tensors = {name: self._zeros(0, 0) for name in self._names}
        self._lengths: NDArray[np.int32] = np.zeros(0, np.int32)

    @property
    def slots(self) -> int:
        return len(self._lengths)

    @property
    def capacity(self) -> int:
        """Tokens that a slot holds."""
        return int(next(iter(self.tensors.values())).shape[2])

    def place(self, batch: StepBatch) -> Place:
        first, rows = int(batch.block_table[0, 0]), len(batch.input_ids)
        assert batch.block_table[:, 0].tolist() == list(range(first, first + rows))
        assert first + rows <= self.slots
        assert int(_ends(batch).max()) <= self.capacity
        return first, rows

    def ran(self, batch: StepBatch) -> None:
        self.note_lengths(int(batch.block_table[0, 0]), _ends(batch))

    def note_lengths(self, first: int, lengths: NDArray[np.int32]) -> None:
        self._lengths[first : first + len(lengths)] = lengths

    def copy(self, copy: BlockCopy) -> None:
        tokens = slice(copy.start, copy.end)
        for tensor in self.tensors.values():
            tensor[copy.destination, :, tokens] = tensor[copy.source, :, tokens]
        self._lengths[copy.destination] = copy.end

    def resize(self, blocks: int, block_size: int) -> bool:
        kept = np.minimum(self._lengths[:blocks], block_size)
        for name, old in self.tensors.items():  # one by one: only one is held twice at a time
            new = self._zeros(blocks, block_size)
            for slot, used in enumerate(kept):
                new[slot, :, :used] = old[slot, :, :used]
            self.tensors[name] = new
        self._lengths = np.zeros(blocks, np.int32)
        self._lengths[: len(kept)] = kept
        return True

    def _zeros(self, slots: int, capacity: int) -> NDArray[Any]:
        even = capacity + capacity % 2  # a prefill writes its padding too
        return _zeros((slots, self._kv_heads, even, self._head_dim), np.dtype(np.float32))


class PagedPool(CachePool):
    """Blocks in address space that is taken once for as many as there can ever be.

    The system commits what is written, so the pool grows by using more of it: nothing is copied,
    and what is bound stays bound. Where so much address space is refused, the pool takes what it
    needs now and moves when it grows.
    """

    def __init__(self, kv: KVEntry, limits: LimitsEntry) -> None:
        assert kv.block_size > 0
        self._most = limits.max_batch * -(-limits.max_context // kv.block_size)
        self._dtype = np.dtype(kv.dtype)
        heads, size, width = kv.kv_heads, kv.block_size, kv.head_dim
        shapes = {"k": (heads, width, size), "v": (heads, size, width)}
        self._shapes = {name: shapes[name[0]] for name in cache_names(kv)}
        self._block_size = size
        self.clear()

    def clear(self) -> None:
        self.blocks = 0
        self.tensors = {name: np.zeros((0, *shape), self._dtype) for name, shape in self._named}

    @property
    def _named(self) -> list[tuple[str, tuple[int, int, int]]]:
        return list(self._shapes.items())

    @property
    def reserved(self) -> int:
        """Blocks that there is address space for."""
        return len(next(iter(self.tensors.values())))

    def place(self, batch: StepBatch) -> Place:
        assert int(batch.block_table.max()) < self.blocks
        assert int(_ends(batch).max()) <= batch.block_table.shape[1] * self._block_size
        return 0, self.reserved

    def ran(self, batch: StepBatch) -> None:
        """Nothing to note: a block is copied by its tokens, and never moved without all it has."""

    def copy(self, copy: BlockCopy) -> None:
        tokens = slice(copy.start, copy.end)
        for name, tensor in self.tensors.items():
            source, destination = tensor[copy.source], tensor[copy.destination]
            if name.startswith("k"):
                destination[:, :, tokens] = source[:, :, tokens]
            else:
                destination[:, tokens] = source[:, tokens]

    def resize(self, blocks: int, block_size: int) -> bool:
        assert block_size == self._block_size, "the engine was built for one"
        moved = blocks > self.reserved
        if moved:
            self._reserve(max(blocks, self._most), blocks)
        self.blocks = blocks
        return moved

    def _reserve(self, most: int, least: int) -> None:
        kept = self.blocks
        for blocks in (most, least):
            try:
                new = {name: _zeros((blocks, *shape), self._dtype) for name, shape in self._named}
                break
            except OSError as error:
                refused = error
        else:
            raise EnginewrightError(
                f"no memory for a cache of {least} blocks of {self._block_size} tokens "
                f"({refused}): lower max_num_seqs, max_model_len or kv_cache_memory_bytes"
            ) from refused
        for name, tensor in new.items():
            tensor[:kept] = self.tensors[name][:kept]
        self.tensors = new


def _ends(batch: StepBatch) -> NDArray[np.int32]:
    return batch.past_lengths + batch.new_lengths


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    size = math.prod(shape)
    if size == 0:
        return np.zeros(shape, dtype)
    return np.frombuffer(_private_pages(dtype.itemsize * size), dtype).reshape(shape)


def _private_pages(size: int) -> mmap.mmap:
    """Zeroed memory of this process, a small page of it committed where it is touched."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    if sys.platform == "linux":
        flags |= _MAP_NORESERVE
    pages = mmap.mmap(-1, size, flags=flags)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages has nothing to forbid
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return pages
