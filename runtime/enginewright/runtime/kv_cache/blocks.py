"""Layout ``paged``: a row is a list of blocks of one size, which rows share as long as they can.

A full block is known by its tokens and all before them, so that any later row that begins alike
takes it over; a reference count says how many rows hold it. Blocks that none holds keep their
content until they are needed, the least recently used first. What a fork copies is the one block
that is not full.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.engine import BlockCopy
from enginewright.runtime.kv_cache.cache import Claim, KVCache, Resize, power_of_two

MIN_BLOCKS = 16
"""Blocks of the smallest pool."""

Key = tuple[int, tuple[int, ...], bool]
"""Of a full block: the block before it (-1: none), its tokens, whether all were prefilled."""


@dataclass
class _Row:
    """``length`` tokens are computed, ``prefilled`` of them together; ``promised``: room it has."""

    tokens: list[int]
    blocks: list[int]
    length: int = 0
    prefilled: int = 0
    promised: int = 0


@dataclass
class _Pool:
    """The blocks that no row holds: never written or forgotten ones, and cached ones in order."""

    empty: list[int] = field(default_factory=list)
    cached: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self.empty) + len(self.cached)


class BlockCache(KVCache):
    """Blocks of ``block_size`` tokens, ``max_blocks`` of them at most, for rows of ``max_length``.

    ``grow_first``: the pool grows before it gives up what ended rows left, not only for live rows.
    ``invariant``: a token is the same to the last bit however it was computed.
    """

    padded = False

    def __init__(
        self,
        max_rows: int,
        max_length: int,
        block_size: int,
        max_blocks: int,
        *,
        keep: bool = True,
        grow_first: bool = False,
        invariant: bool = False,
    ) -> None:
        super().__init__()
        assert max_rows > 0
        assert block_size > 0
        assert max_blocks > 0
        self._max_rows, self._block_size, self._max_blocks = max_rows, block_size, max_blocks
        self._max_length = min(max_length, max_blocks * block_size)
        self._keep, self._grow_first, self._invariant = keep, grow_first, invariant
        self.reset()

    @property
    def size(self) -> Resize:
        """The pool's."""
        return Resize(self._blocks, self._block_size)

    @property
    def min_reuse(self) -> int:
        return self._block_size

    @property
    def max_length(self) -> int:
        return self._max_length

    def fits(self, rows: int, length: int) -> bool:
        fitting = rows <= self._max_rows and length <= self._max_length
        return fitting and rows * self._count(length) <= self._max_blocks

    @property
    def free_rows(self) -> int:
        return self._max_rows - len(self._rows) - self.reserved_rows

    @property
    def usage(self) -> float:
        return (self._blocks - len(self._free)) / self._max_blocks

    @property
    def decoding(self) -> Sequence[int]:
        return list(self._decoding)

    @property
    def free_blocks(self) -> int:
        """Blocks that no row holds and none was promised."""
        promised = [row for row in self._rows.values() if row.promised]
        kept = sum(self._count(row.promised) - len(row.blocks) for row in promised)
        kept += sum(rows * self._count(length) for length, rows in self._reserved.items())
        return len(self._free) + self._max_blocks - self._blocks - kept

    def match(self, claim: Claim) -> int:
        return len(self._shared(claim)) * self._block_size

    def admit(self, claim: Claim) -> int | None:
        shared = self._shared(claim)
        length = max(len(claim.tokens), claim.length)
        needed = self._count(length) - len(shared) + (claim.rows - 1) * self._count(claim.length)
        idle = sum(block in self._free.cached for block in shared)
        if self.free_rows < claim.rows or self.free_blocks - idle < needed:
            return None
        for block in shared:
            self._hold(block)
        count = len(shared) * self._block_size
        row = _Row(claim.tokens, shared, count, self._prefilled_of(shared), claim.length)
        self._rows[claim.row] = row
        self._extend(row, len(claim.tokens))
        return count

    def grow(self, row: int, length: int) -> bool:
        holder = self._rows[row]
        missing = self._count(length) - len(holder.blocks)
        if missing > 0 and not holder.promised and self.free_blocks < missing:
            return False
        self._extend(holder, length)
        return True

    def shrink(self, row: int, length: int) -> None:
        blocks, count = self._rows[row].blocks, self._count(length)
        self._drop(blocks[count:])
        del blocks[count:]

    def computed(self, row: int, tokens: int, *, prefilled: bool) -> None:
        holder = self._rows[row]
        if (prefilled or self._invariant) and holder.prefilled == holder.length:
            holder.prefilled = tokens
        first, last = holder.length // self._block_size, tokens // self._block_size
        holder.length = tokens
        for at in range(first, last):
            self._name(holder, at)

    def promote(self, row: int) -> None:
        self._decoding[row] = None

    def fork(self, parent: int, child: int, tokens: list[int]) -> bool:
        source = self._rows[parent]
        length = max(source.length + 1, source.promised)
        missing = self._count(length) - source.length // self._block_size
        if self.free_rows < 1 or self.free_blocks < missing:
            return False
        row = _Row(tokens, [], promised=source.promised)
        self._rows[child] = row
        self._decoding[child] = None
        self._share(row, source)
        return True

    def rearrange(self, parents: dict[int, int], tokens: dict[int, list[int]]) -> None:
        for row, parent in parents.items():
            assert parents[parent] == parent
            if row != parent:
                holder = self._rows[row]
                self._drop(holder.blocks)
                holder.blocks = []
                self._share(holder, self._rows[parent])
        for row, ids in tokens.items():
            self._rows[row].tokens = ids

    def release(self, rows: Collection[int]) -> None:
        for row in rows:
            self._drop(self._rows.pop(row).blocks)
            self._decoding.pop(row, None)

    def table(self, rows: Sequence[int]) -> NDArray[np.int32]:
        """Padded with block 0, which a row never reads beyond its length."""
        lists = [self._rows[row].blocks for row in rows]
        table = np.zeros((len(lists), max(map(len, lists))), np.int32)
        for at, blocks in enumerate(lists):
            table[at, : len(blocks)] = blocks
        return table

    def forget(self) -> None:
        for block in list(self._free.cached):
            self._unname(block)
        self._free.empty += self._free.cached
        self._free.cached.clear()

    def reset(self) -> None:
        self._blocks = 0
        self._rows: dict[int, _Row] = {}
        self._decoding: dict[int, None] = {}
        self._free = _Pool()
        self._references: list[int] = []
        self._block_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}
        self._commands = []
        self._reserved.clear()

    def _count(self, tokens: int) -> int:
        return -(-tokens // self._block_size)

    def _shared(self, claim: Claim) -> list[int]:
        """The named blocks of the claim's beginning."""
        blocks: list[int] = []
        before = -1
        for start in range(0, claim.most - self._block_size + 1, self._block_size):
            tokens = tuple(claim.tokens[start : start + self._block_size])
            block = self._block_of.get((before, tokens, True))
            if block is None and not claim.exact:
                block = self._block_of.get((before, tokens, False))
            if block is None:
                break
            blocks.append(block)
            before = block
        return blocks

    def _prefilled_of(self, blocks: Sequence[int]) -> int:
        prefilled = 0
        for block in blocks:
            if not self._key_of[block][2]:
                break
            prefilled += self._block_size
        return prefilled

    def _extend(self, row: _Row, length: int) -> None:
        while len(row.blocks) < self._count(length):
            row.blocks.append(self._take())

    def _take(self) -> int:
        """A block for one row: an empty one, the least recently used, or a new one."""
        may_evict = self._free.cached and not self._grow_first
        if not self._free.empty and not may_evict and self._blocks < self._max_blocks:
            old = self._blocks
            self._blocks = min(power_of_two(max(old + 1, MIN_BLOCKS)), self._max_blocks)
            self._free.empty += reversed(range(old, self._blocks))
            self._references += [0] * (self._blocks - old)
            self._commands.append(Resize(self._blocks, self._block_size))
        if self._free.empty:
            block = self._free.empty.pop()
        else:
            block, _ = self._free.cached.popitem(last=False)
            self._unname(block)
        self._references[block] = 1
        return block

    def _hold(self, block: int) -> None:
        self._free.cached.pop(block, None)
        self._references[block] += 1

    def _drop(self, blocks: Sequence[int]) -> None:
        """The end of a row is let go first: its beginning is what others may share."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._key_of:
                    self._free.cached[block] = None
                else:
                    self._free.empty.append(block)

    def _share(self, row: _Row, source: _Row) -> None:
        """The row holds what the source has computed: full blocks shared, the last one copied."""
        full, rest = divmod(source.length, self._block_size)
        row.blocks = source.blocks[:full]
        for block in row.blocks:
            self._hold(block)
        if rest:
            block = self._take()
            self._commands.append(BlockCopy(source.blocks[full], block, 0, rest))
            row.blocks.append(block)
        row.length, row.prefilled = source.length, source.prefilled

    def _name(self, row: _Row, at: int) -> None:
        """Let others find a block that has become full, unless they find its equal already."""
        if not self._keep:
            return
        start, end = at * self._block_size, (at + 1) * self._block_size
        before = row.blocks[at - 1] if at else -1
        if at and before not in self._key_of:
            return  # a twin of a named block: what follows it is not looked for
        key = (before, tuple(row.tokens[start:end]), row.prefilled >= end)
        if key not in self._block_of and row.blocks[at] not in self._key_of:
            self._block_of[key] = row.blocks[at]
            self._key_of[row.blocks[at]] = key

    def _unname(self, block: int) -> None:
        del self._block_of[self._key_of.pop(block)]
