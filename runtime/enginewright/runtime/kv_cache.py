"""Which row owns which slot of the cache, and how large the cache must be. Pure logic.

Live rows always fill the slots 0..n-1: first the rows that decode, then those still in
prefill. So the rows of any step are one contiguous range. A row that ends leaves a hole, which
the last decoding row fills; that move is a copy of a block, which the caller has to carry out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

Copy = tuple[int, int]
"""A block to copy: (from, to)."""

MIN_CAPACITY = 256
"""Tokens that the smallest cache holds in a slot."""


@dataclass(frozen=True)
class PoolSize:
    """Slots, and the tokens that each holds."""

    slots: int
    capacity: int


class SlotManager:
    """Slots of live rows. A row is any hashable name; it is admitted, promoted, released."""

    def __init__(self, max_slots: int, max_capacity: int) -> None:
        assert max_slots > 0
        assert max_capacity > 0
        self._max = PoolSize(max_slots, max_capacity)
        self._rows: list[int] = []
        self._decoding = 0
        self.size = PoolSize(0, 0)

    @property
    def decoding(self) -> tuple[int, ...]:
        """The rows in the slots 0, 1, ... that decode."""
        return tuple(self._rows[: self._decoding])

    @property
    def prefilling(self) -> tuple[int, ...]:
        """The rows still in prefill, in the slots after the decoding ones."""
        return tuple(self._rows[self._decoding :])

    @property
    def free(self) -> int:
        """How many more rows can be admitted."""
        return self._max.slots - len(self._rows)

    def slot(self, row: int) -> int:
        return self._rows.index(row)

    def admit(self, row: int) -> int:
        """Give a new row the next slot; it is in prefill."""
        assert self.free > 0
        assert row not in self._rows
        self._rows.append(row)
        return len(self._rows) - 1

    def promote(self, row: int) -> None:
        """Count the row, the first of those in prefill, among the decoding ones."""
        assert self._rows[self._decoding] == row
        self._decoding += 1

    def release(self, rows: Collection[int]) -> list[Copy]:
        """Free the slots of rows and close the holes; returns the copies, in order.

        Holes among the decoding rows are filled from their end, so that at most one block is
        copied for each hole; rows in prefill then move down and keep their order.
        """
        gone = set(rows)
        assert gone <= set(self._rows)
        survivors = [slot for slot in range(self._decoding) if self._rows[slot] not in gone]
        kept = len(survivors)
        holes = [slot for slot in range(kept) if self._rows[slot] in gone]
        movers = [slot for slot in survivors if slot >= kept]
        copies: list[Copy] = list(zip(movers, holes, strict=True))
        later = range(self._decoding, len(self._rows))
        prefilling = [slot for slot in later if self._rows[slot] not in gone]
        copies += [(old, new) for new, old in enumerate(prefilling, kept) if old != new]
        self._apply(copies, kept + len(prefilling))
        self._decoding = kept
        return copies

    def grow(self, tokens: int) -> PoolSize | None:
        """The size to change to so that all live rows, the longest of ``tokens``, have room.

        None when they have it already. Sizes are powers of two, cut at the limits, so that
        growing costs a constant for each token in the long run.
        """
        assert tokens <= self._max.capacity
        slots = min(_power_of_two(len(self._rows)), self._max.slots)
        capacity = min(_power_of_two(max(tokens, MIN_CAPACITY)), self._max.capacity)
        wanted = PoolSize(max(slots, self.size.slots), max(capacity, self.size.capacity))
        if wanted == self.size:
            return None
        self.size = wanted
        return wanted

    def _apply(self, copies: list[Copy], rows: int) -> None:
        for source, destination in copies:
            self._rows[destination] = self._rows[source]
        del self._rows[rows:]


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()
