"""Layout ``slots``: a block is a whole row's cache, and the rows of a step are adjacent slots.

Live rows fill the slots 0..n-1: first the rows that decode, then those still in prefill. A row that
ends leaves a hole, which the last decoding row fills. The slots from n on keep what ended rows had
computed. To share is to copy here; what two slots have in common is not copied.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.engine import BlockCopy
from enginewright.runtime.kv_cache.cache import Claim, KVCache, Resize, common_prefix, power_of_two

MIN_CAPACITY = 256
"""Tokens that the smallest pool holds in a slot."""

MIN_REUSE = 32
"""Tokens below which taking over is no gain: a prompt that goes on from a past is computed by
itself, and that step alone costs about as much as so many more tokens in a step with others."""


@dataclass
class _Slot:
    """``tokens[:length]`` are cached, ``prefilled`` of them together; ``used``: when last."""

    tokens: Sequence[int] = field(default_factory=list)
    length: int = 0
    prefilled: int = 0
    used: int = 0

    @property
    def worth(self) -> int:
        """What is kept longest has the highest."""
        return self.used if self.length >= MIN_REUSE else -1


class SlotCache(KVCache):
    """Slots of live rows, and of ended ones.

    ``slot_size``: the tokens of every slot, for an engine that was built for so many; else slots
    are as large as the longest row needs.

    ``max_tokens``: slots times their size never exceed it; then room that no live row needs is
    used to keep more of what ended. Without it the pool grows only for live rows. ``invariant``:
    a token that was computed together with others is the same to the last bit in any such step.
    """

    padded = True

    def __init__(
        self,
        max_rows: int,
        max_length: int,
        max_tokens: int | None = None,
        *,
        keep: bool = True,
        invariant: bool = True,
        slot_size: int | None = None,
    ) -> None:
        super().__init__()
        assert max_rows > 0
        assert slot_size is None or slot_size >= max_length
        assert max_length > 0
        self._max_rows = max_rows
        self._budget = max_tokens
        self._max_length = max_length if max_tokens is None else min(max_length, _even(max_tokens))
        self._keep = keep
        self._invariant = invariant
        self._slot_size = slot_size
        self._clock = 0
        self._slots: list[_Slot] = []
        self._capacity = 0
        self._rows: list[int] = []
        self._place: dict[int, int] = {}
        self._promised: dict[int, int] = {}
        self._decoding = 0

    @property
    def size(self) -> Resize:
        """The pool's."""
        return Resize(len(self._slots), self._capacity)

    @property
    def min_reuse(self) -> int:
        return MIN_REUSE

    @property
    def max_length(self) -> int:
        return self._max_length

    def fits(self, rows: int, length: int) -> bool:
        fitting = rows <= self._max_rows and length <= self._max_length
        size = self._slot_size or _even_up(length)
        return fitting and (self._budget is None or rows * size <= self._budget)

    @property
    def free_rows(self) -> int:
        return self._max_rows - len(self._rows) - self.reserved_rows

    @property
    def usage(self) -> float:
        return len(self._rows) / self._max_rows

    @property
    def decoding(self) -> Sequence[int]:
        return self._rows[: self._decoding]

    def match(self, claim: Claim) -> int:
        return self._best(claim)[1]

    def admit(self, claim: Claim) -> int | None:
        place = len(self._rows)
        rows = place + self.reserved_rows + claim.rows
        if not self._make_room(rows, max(len(claim.tokens), claim.length)):
            return None
        source, count = self._best(claim)
        if source != place or not count:
            free = range(place + 1, len(self._slots))
            self._save(place, [at for at in free if at != source])
        if source != place:
            self._copy(source, place, count)
        slot = self._slots[place]
        slot.tokens, slot.length, slot.prefilled = claim.tokens, count, min(slot.prefilled, count)
        self._rows.append(claim.row)
        self._place[claim.row] = place
        self._promised[claim.row] = claim.length
        return count

    def grow(self, row: int, length: int) -> bool:
        return length <= self._capacity or self._make_room(
            len(self._rows) + self.reserved_rows, length
        )

    def computed(self, row: int, tokens: int, *, prefilled: bool) -> None:
        slot = self._slots[self._place[row]]
        if prefilled and slot.prefilled == slot.length:
            slot.prefilled = tokens
        slot.length = tokens

    def promote(self, row: int) -> None:
        """The row is the first of those in prefill."""
        assert self._rows[self._decoding] == row
        self._decoding += 1

    def fork(self, parent: int, child: int, tokens: list[int]) -> bool:
        live, place = len(self._rows), self._decoding
        source = self._place[parent]
        length = self._slots[source].length
        if not self._make_room(live + self.reserved_rows + 1, length + 1):
            return False
        self._save(live, range(live + 1, len(self._slots)))
        if live > place:  # at most one prompt is half done between steps
            assert live == place + 1
            self._move(place, live)
        self._copy(source, place, length)
        self._slots[place].tokens = tokens
        self._rows.insert(place, child)
        self._promised[child] = self._promised[parent]
        self._decoding += 1
        self._place = {row: at for at, row in enumerate(self._rows)}
        return True

    def rearrange(self, parents: dict[int, int], tokens: dict[int, list[int]]) -> None:
        for row, parent in parents.items():
            assert parents[parent] == parent
            if row == parent:
                continue
            source, place = self._place[parent], self._place[row]
            old, new = self._slots[place], self._slots[source]
            # Rows of one search: the same tokens were computed by the same steps.
            same = common_prefix(old.tokens, new.tokens, min(old.length, new.length))
            if same < new.length:
                self._commands.append(BlockCopy(source, place, same, new.length))
            old.length, old.prefilled = new.length, new.prefilled
        for row, ids in tokens.items():
            self._slots[self._place[row]].tokens = ids

    def release(self, rows: Collection[int]) -> None:
        # From the end on: a row that leaves as the last needs no other in its place.
        for row in sorted(rows, key=self._place.__getitem__, reverse=True):
            self._release(self._place[row])
            del self._promised[row]
        self._place = {row: at for at, row in enumerate(self._rows)}

    def table(self, rows: Sequence[int]) -> NDArray[np.int32]:
        return np.array([[self._place[row]] for row in rows], np.int32)

    def forget(self) -> None:
        for slot in self._slots[len(self._rows) :]:
            slot.length = slot.prefilled = 0

    def reset(self) -> None:
        self._slots, self._capacity = [], 0
        self._rows, self._place, self._promised, self._decoding = [], {}, {}, 0
        self._commands = []
        self._reserved.clear()

    def _best(self, claim: Claim) -> tuple[int, int]:
        """The slot to take over from, and how many tokens; the next free one and 0 if none."""
        live = len(self._rows)
        best, most = live, 0
        # A free slot may be taken as it is, the next one without even a copy: these come first.
        for place in (*range(live, len(self._slots)), *range(live)):
            slot = self._slots[place]
            limit = min(claim.most, slot.prefilled if claim.exact else slot.length)
            if limit > most:
                count = common_prefix(slot.tokens, claim.tokens, limit)
                if count > most:
                    best, most = place, count
        return (best, most) if most >= MIN_REUSE else (live, 0)

    def _make_room(self, rows: int, length: int) -> bool:
        """Have room for so many rows, one of them of ``length`` tokens; False if there cannot be.

        Sizes are powers of two where they fit, so that growing costs a constant a token; always
        even, for engines that pad a prefill to an even width.
        """
        if rows > self._max_rows or length > self._max_length:
            return False
        if self._slot_size is not None:
            return self._make_slots(rows, self._slot_size)
        known = (len(self._slots[place].tokens) for place in self._place.values())
        longest = max((length, *known, *self._promised.values(), *self._reserved))
        most = _even_up(self._max_length)
        rounded = min(power_of_two(max(longest, MIN_CAPACITY)), most)
        capacities = [max(self._capacity, rounded), rounded]
        if self._budget is not None:
            capacities.append(min(_even(self._budget // rows), most))
        for capacity in capacities:
            if capacity >= longest and self._make_slots(rows, capacity):
                return True
        return False

    def _make_slots(self, rows: int, capacity: int) -> bool:
        if self._affordable(capacity) < rows:
            return False
        self._resize(self._slots_for(rows, capacity), capacity)
        return True

    def _slots_for(self, rows: int, capacity: int) -> int:
        most = self._affordable(capacity)
        wanted = max(len(self._slots), min(power_of_two(rows), self._max_rows))
        full = all(slot.worth > 0 for slot in self._slots[len(self._rows) :])
        if self._budget is not None and self._keep and full:
            wanted = max(wanted, 2 * rows)
        return min(wanted, most)

    def _affordable(self, capacity: int) -> int:
        return self._max_rows if self._budget is None else self._budget // capacity

    def _resize(self, slots: int, capacity: int) -> None:
        if Resize(slots, capacity) == self.size:
            return
        del self._slots[slots:]
        for slot in self._slots:
            slot.length, slot.prefilled = min(slot.length, capacity), min(slot.prefilled, capacity)
        self._slots += [_Slot() for _ in range(slots - len(self._slots))]
        self._capacity = capacity
        self._commands.append(Resize(slots, capacity))

    def _release(self, place: int) -> None:
        """Close the hole that a row leaves; what it had computed moves to a free slot, or stays."""
        slot = self._slots[place]
        self._clock += 1
        slot.used = self._clock
        if not self._keep:
            slot.length = slot.prefilled = 0
        live = len(self._rows)
        if place < self._decoding:
            self._decoding -= 1
            movers = [self._decoding, *range(self._decoding + 1, live)]
        else:
            movers = list(range(place + 1, live))
        movers = [mover for mover in movers if mover != place]
        if movers:
            self._save(place, range(live, len(self._slots)))
        for mover in movers:
            self._move(mover, place)
            self._rows[place] = self._rows[mover]
            place = mover
        del self._rows[place]

    def _save(self, place: int, free: Sequence[int]) -> None:
        """Copy what an ended row left in a slot to a free one whose content is worth less."""
        slot = self._slots[place]
        if slot.worth < 0 or not free:
            return
        target = min(free, key=lambda at: self._slots[at].worth)
        if self._slots[target].worth < slot.worth:
            self._copy(place, target, slot.length)

    def _move(self, source: int, destination: int) -> None:
        self._copy(source, destination, self._slots[source].length)
        self._slots[source].length = self._slots[source].prefilled = 0

    def _copy(self, source: int, destination: int, count: int) -> None:
        """Copy all but what is the same to the last bit in both."""
        old, new = self._slots[destination], self._slots[source]
        known = min(old.prefilled, new.prefilled, count) if self._invariant else 0
        same = common_prefix(old.tokens, new.tokens, known)
        if same < count:
            self._commands.append(BlockCopy(source, destination, same, count))
        old.tokens, old.length = new.tokens, count
        old.prefilled, old.used = min(new.prefilled, count), new.used


def _even(number: int) -> int:
    return number - number % 2


def _even_up(number: int) -> int:
    return number + number % 2
