"""SlotManager: live rows stay contiguous, and carrying out its copies moves their content."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from enginewright.runtime.kv_cache import PoolSize, SlotManager


def manager(rows: int, decoding: int) -> SlotManager:
    slots = SlotManager(max_slots=8, max_capacity=1000)
    for row in range(rows):
        assert slots.admit(row) == row
    for row in range(decoding):
        slots.promote(row)
    return slots


def test_the_last_decoding_row_fills_a_hole() -> None:
    slots = manager(rows=4, decoding=4)
    assert slots.release([1]) == [(3, 1)]
    assert slots.decoding == (0, 3, 2)


def test_a_last_row_leaves_without_a_copy() -> None:
    slots = manager(rows=4, decoding=4)
    assert slots.release([3]) == []
    assert slots.decoding == (0, 1, 2)


def test_rows_in_prefill_move_down_behind_the_decoding_ones() -> None:
    slots = manager(rows=4, decoding=2)
    assert slots.release([0]) == [(1, 0), (2, 1), (3, 2)]
    assert slots.decoding == (1,)
    assert slots.prefilling == (2, 3)


def test_rows_that_end_together_cost_one_copy_for_each_hole() -> None:
    slots = manager(rows=6, decoding=6)
    copies = slots.release([0, 1, 5])
    assert len(copies) == 2
    assert sorted(slots.decoding) == [2, 3, 4]


def test_sizes_are_powers_of_two_cut_at_the_limits() -> None:
    slots = SlotManager(max_slots=3, max_capacity=600)
    slots.admit(0)
    assert slots.grow(5) == PoolSize(1, 256)
    assert slots.grow(256) is None
    assert slots.grow(257) == PoolSize(1, 512)
    assert slots.grow(600) == PoolSize(1, 600)
    slots.admit(1)
    assert slots.grow(10) == PoolSize(2, 600)
    slots.admit(2)
    assert slots.grow(10) == PoolSize(3, 600)


def test_a_cache_never_shrinks() -> None:
    slots = SlotManager(max_slots=8, max_capacity=1024)
    for row in range(4):
        slots.admit(row)
    slots.grow(1000)
    slots.release([0, 1, 2])
    assert slots.grow(1) is None


@given(limit=st.integers(1, 5000), tokens=st.integers(1, 5000))
def test_the_size_always_fits(limit: int, tokens: int) -> None:
    tokens = min(tokens, limit)
    slots = SlotManager(max_slots=1, max_capacity=limit)
    slots.admit(0)
    size = slots.grow(tokens)
    assert size is not None
    assert tokens <= size.capacity <= limit


class Slots(RuleBasedStateMachine):
    """The copies, carried out on a list, keep every live row's content in its slot."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = SlotManager(max_slots=6, max_capacity=100)
        self.content: list[int | None] = [None] * 6
        self.next = 0

    @precondition(lambda self: self.slots.free > 0)
    @rule()
    def admit(self) -> None:
        self.content[self.slots.admit(self.next)] = self.next
        self.next += 1

    @precondition(lambda self: self.slots.prefilling)
    @rule()
    def promote(self) -> None:
        self.slots.promote(self.slots.prefilling[0])

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        live = (*self.slots.decoding, *self.slots.prefilling)
        gone = data.draw(st.sets(st.sampled_from(live))) if live else set()
        copies = self.slots.release(gone)
        assert len(copies) <= len(live) - len(gone)
        for source, destination in copies:
            self.content[destination], self.content[source] = self.content[source], None

    @invariant()
    def every_row_is_where_it_is_said_to_be(self) -> None:
        live = (*self.slots.decoding, *self.slots.prefilling)
        assert tuple(self.content[: len(live)]) == live
        assert self.slots.free == 6 - len(live)
        assert [self.slots.slot(row) for row in live] == list(range(len(live)))


TestSlots = Slots.TestCase
