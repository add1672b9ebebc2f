"""Both layouts: after their commands, every live row's content is where it is said to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from enginewright.runtime.engine import BlockCopy
from enginewright.runtime.kv_cache.blocks import BlockCache
from enginewright.runtime.kv_cache.cache import Claim, KVCache, Resize, common_prefix
from enginewright.runtime.kv_cache.slots import MIN_REUSE, SlotCache

STEMS = [[stem + at % 3 for at in range(120)] for stem in (10, 20, 30)]


class Pool:
    """The engine's side: blocks of tokens."""

    def __init__(self) -> None:
        self.content: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self.copied = 0

    def carry_out(self, cache: KVCache) -> None:
        for command in cache.take_commands():
            if isinstance(command, Resize):
                old = self.content[: command.blocks, : command.block_size]
                self.content = np.full((command.blocks, command.block_size), -1, np.int64)
                self.content[: old.shape[0], : old.shape[1]] = old
                continue
            assert isinstance(command, BlockCopy)
            part = self.content[command.source, command.start : command.end]
            self.content[command.destination, command.start : command.end] = part
            self.copied += command.end - command.start

    def write(self, table: Sequence[int], tokens: Sequence[int], start: int) -> None:
        for at in range(start, len(tokens)):
            block, offset = divmod(at, self.content.shape[1])
            self.content[table[block], offset] = tokens[at]

    def read(self, table: Sequence[int], count: int) -> list[int]:
        return [int(token) for token in self.content[list(table)].reshape(-1)[:count]]


class Machine(RuleBasedStateMachine):
    """Rows come, are computed, fork, change places and go, in any order that is legal."""

    max_rows, max_length = 4, 600
    memory: int | None = None
    open: Callable[[], KVCache]

    def __init__(self) -> None:
        super().__init__()
        self.cache = self.open()
        self.pool = Pool()
        self.next = 0
        self.tokens: dict[int, list[int]] = {}
        self.done: dict[int, int] = {}
        self.prefilling: list[int] = []

    @property
    def ready(self) -> list[int]:
        """Decoding rows all of whose tokens are computed, as after a step."""
        return [row for row in self.cache.decoding if self.done[row] == len(self.tokens[row])]

    @precondition(lambda self: not self.prefilling)
    @rule(
        stem=st.sampled_from(STEMS),
        length=st.integers(1, 120),
        more=st.lists(st.integers(0, 9), max_size=300),
        exact=st.booleans(),
    )
    def admit(self, stem: list[int], length: int, more: list[int], exact: bool) -> None:
        tokens = [*stem[:length], *more]
        claim = Claim(self.next, tokens, max(len(tokens) - 2, 0), exact)
        taken = self.cache.admit(claim)
        if taken is None:
            assert self.tokens, "a row alone always has room"
            return
        assert taken <= claim.most
        self.tokens[self.next], self.done[self.next] = tokens, taken
        self.prefilling.append(self.next)
        self.next += 1

    @precondition(lambda self: self.prefilling)
    @rule(part=st.integers(1, 200))
    def prefill(self, part: int) -> None:
        (row,) = self.prefilling
        end = min(self.done[row] + part, len(self.tokens[row]))
        if end == self.done[row]:
            return
        self._compute(row, end, prefilled=True)
        if end == len(self.tokens[row]):
            self.prefilling.remove(row)
            self.cache.promote(row)

    @rule(data=st.data(), token=st.integers(0, 9))
    def decode(self, data: st.DataObject, token: int) -> None:
        if not self.ready:
            return
        row = data.draw(st.sampled_from(self.ready))
        length = len(self.tokens[row]) + 1
        if length > self.cache.max_length or not self.cache.grow(row, length):
            return
        self.tokens[row].append(token)
        self._compute(row, length, prefilled=False)

    @rule(data=st.data(), drafted=st.integers(1, 40))
    def reject(self, data: st.DataObject, drafted: int) -> None:
        """A draft has its room for one step."""
        if not self.ready:
            return
        row = data.draw(st.sampled_from(self.ready))
        length = len(self.tokens[row])
        before = self._room()
        if length + drafted <= self.cache.max_length and self.cache.grow(row, length + drafted):
            self.cache.shrink(row, length)
            assert self._room() == before

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        if not self.ready or not self.cache.free_rows:
            return
        parent = data.draw(st.sampled_from(self.ready))
        tokens = list(self.tokens[parent])
        if len(tokens) < self.cache.max_length and self.cache.fork(parent, self.next, tokens):
            self.tokens[self.next], self.done[self.next] = tokens, len(tokens)
            self.next += 1

    @rule(data=st.data())
    def rearrange(self, data: st.DataObject) -> None:
        if not self.ready:
            return
        parent = data.draw(st.sampled_from(self.ready))
        others = data.draw(st.sets(st.sampled_from(self.ready)))
        parents = dict.fromkeys((*others, parent), parent)
        tokens = {row: list(self.tokens[parent]) for row in parents}
        self.cache.rearrange(parents, tokens)
        for row in parents:
            self.tokens[row], self.done[row] = tokens[row], len(tokens[row])

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if not self.tokens:
            return
        gone = data.draw(st.sets(st.sampled_from(sorted(self.tokens)), min_size=1))
        self.cache.release(gone)
        self.prefilling = [row for row in self.prefilling if row not in gone]
        for row in gone:
            del self.tokens[row], self.done[row]

    @rule()
    def forget(self) -> None:
        self.cache.forget()
        claim = Claim(-1, list(STEMS[0]), 120, exact=False)
        live = [self.tokens[row] for row in self.tokens]
        most = max((common_prefix(tokens, claim.tokens, 120) for tokens in live), default=0)
        assert self.cache.match(claim) <= most

    @invariant()
    def every_row_is_where_it_is_said_to_be(self) -> None:
        self.pool.carry_out(self.cache)
        for row, tokens in self.tokens.items():
            if self.done[row]:
                (table,) = self.cache.table([row])
                assert self.pool.read(table, self.done[row]) == tokens[: self.done[row]]

    @invariant()
    def rows_are_counted(self) -> None:
        assert self.cache.free_rows == self.max_rows - len(self.tokens)
        assert sorted([*self.cache.decoding, *self.prefilling]) == sorted(self.tokens)

    @invariant()
    def the_pool_is_within_its_bounds(self) -> None:
        if self.memory is not None:
            assert self.pool.content.size <= self.memory

    def _room(self) -> int:
        """What the cache says is free, where others could use what one row gives back."""
        return 0

    def _compute(self, row: int, end: int, *, prefilled: bool) -> None:
        self.pool.carry_out(self.cache)
        (table,) = self.cache.table([row])
        self.pool.write(table, self.tokens[row][:end], self.done[row])
        self.done[row] = end
        self.cache.computed(row, end, prefilled=prefilled)


class Slots(Machine):
    def open(self) -> KVCache:
        return SlotCache(self.max_rows, self.max_length, self.memory)

    @invariant()
    def rows_that_decode_are_adjacent(self) -> None:
        if self.cache.decoding:
            places = self.cache.table(self.cache.decoding)[:, 0]
            assert places.tolist() == list(range(len(places)))


class FewSlots(Slots):
    memory = 900


class FixedSlots(Slots):
    memory = 2000

    def open(self) -> KVCache:
        return SlotCache(self.max_rows, self.max_length, self.memory, slot_size=640)

    @invariant()
    def slots_have_the_size_that_was_built(self) -> None:
        assert isinstance(self.cache, SlotCache)
        assert self.cache.size.block_size in (0, 640)


class Blocks(Machine):
    grow_first = False

    def _room(self) -> int:
        assert isinstance(self.cache, BlockCache)
        return self.cache.free_blocks

    def open(self) -> KVCache:
        blocks = 8 * self.max_rows if self.memory is None else self.memory // 16
        return BlockCache(self.max_rows, self.max_length, 16, blocks, grow_first=self.grow_first)

    @invariant()
    def no_block_leaks(self) -> None:
        assert isinstance(self.cache, BlockCache)
        held = {block for row in self.tokens for block in self.cache._rows[row].blocks}
        counts = [row.blocks.count(b) for row in self.cache._rows.values() for b in row.blocks]
        assert set(counts) <= {1}
        assert len(held) + self.cache.free_blocks == self.cache._max_blocks
        for block in held:
            holders = sum(block in row.blocks for row in self.cache._rows.values())
            assert self.cache._references[block] == holders


class FewBlocks(Blocks):
    grow_first = True
    memory = 16 * 20


SETTINGS = settings(max_examples=60, stateful_step_count=60)
for machine in (Slots, FewSlots, FixedSlots, Blocks, FewBlocks):
    machine.TestCase.settings = SETTINGS
TestSlots, TestFewSlots = Slots.TestCase, FewSlots.TestCase
TestFixedSlots = FixedSlots.TestCase
TestBlocks, TestFewBlocks = Blocks.TestCase, FewBlocks.TestCase


@given(
    a=st.lists(st.integers(0, 2), max_size=300),
    end=st.integers(0, 300),
    b=st.lists(st.integers(0, 2), max_size=9),
)
def test_the_common_beginning_of_two_lists(a: list[int], end: int, b: list[int]) -> None:
    other = [*a[:end], *b]
    pairs = zip(a, other, strict=False)
    expected = next((at for at, (x, y) in enumerate(pairs) if x != y), min(len(a), len(other)))
    assert common_prefix(a, other, 1000) == expected
    assert common_prefix(a, other, 5) == min(expected, 5)


def admitted(cache: KVCache, row: int, tokens: list[int]) -> int:
    taken = cache.admit(Claim(row, tokens, len(tokens) - 1, exact=False))
    assert taken is not None
    cache.computed(row, len(tokens), prefilled=True)
    cache.promote(row)
    return taken


def test_sizes_are_powers_of_two_cut_at_the_limits() -> None:
    slots = SlotCache(max_rows=3, max_length=600)
    admitted(slots, 0, [1] * 5)
    assert slots.size == Resize(1, 256)
    assert slots.grow(0, 256)
    assert slots.size == Resize(1, 256)
    assert slots.grow(0, 257)
    assert slots.size == Resize(1, 512)
    assert slots.grow(0, 600)
    assert slots.size == Resize(1, 600)
    admitted(slots, 1, [2] * 10)
    admitted(slots, 2, [3] * 10)
    assert slots.size == Resize(3, 600)
    assert not slots.grow(0, 601)


def test_slots_of_a_size_that_was_built() -> None:
    slots = SlotCache(max_rows=4, max_length=600, max_tokens=1500, slot_size=640)
    admitted(slots, 0, [1] * 5)
    assert slots.size == Resize(2, 640)
    assert slots.fits(2, 600)
    assert not slots.fits(3, 5)
    admitted(slots, 1, [2] * 5)
    assert slots.admit(Claim(2, [3] * 5, 4, exact=False)) is None
    assert slots.grow(0, 600)
    assert slots.size == Resize(2, 640)
    assert not slots.grow(0, 641)


def test_a_cache_of_slots_does_not_shrink_without_need() -> None:
    slots = SlotCache(max_rows=8, max_length=1024)
    for row in range(4):
        admitted(slots, row, [row] * 1000)
    slots.release([0, 1, 2])
    admitted(slots, 4, [9])
    assert slots.size == Resize(4, 1024)


def test_a_long_row_takes_the_room_of_ended_ones_and_gives_it_back() -> None:
    slots = SlotCache(max_rows=8, max_length=1024, max_tokens=1024)
    for row in range(4):
        admitted(slots, row, [row] * 200)
    assert slots.size == Resize(4, 256)
    slots.release([0, 1, 2, 3])
    admitted(slots, 4, [9] * 1000)
    assert slots.size == Resize(1, 1024)
    slots.release([4])
    for row in range(5, 9):
        admitted(slots, row, [row] * 200)
    assert slots.size == Resize(4, 256)


def test_rows_that_end_together_cost_one_copy_for_each_hole() -> None:
    slots = SlotCache(max_rows=8, max_length=1000, keep=False)
    for row in range(6):
        admitted(slots, row, [row] * 20)
    slots.take_commands()
    slots.release([0, 1, 5])
    assert slots.take_commands() == [BlockCopy(4, 1, 0, 20), BlockCopy(3, 0, 0, 20)]
    assert sorted(slots.decoding) == [2, 3, 4]


def test_what_two_slots_have_in_common_is_not_copied() -> None:
    slots = SlotCache(max_rows=4, max_length=1000)
    prompt = list(range(100))
    admitted(slots, 0, prompt)
    slots.take_commands()
    assert slots.fork(0, 1, [*prompt, 7])
    assert slots.take_commands() == [Resize(2, 256), BlockCopy(0, 1, 0, 100)]
    for row, token in ((0, 5), (1, 7)):
        slots.rearrange({row: row}, {row: [*prompt, token]})
        slots.computed(row, 101, prefilled=False)
    slots.rearrange({0: 0, 1: 0}, {0: [*prompt, 5, 1], 1: [*prompt, 5, 2]})
    assert slots.take_commands() == [BlockCopy(0, 1, 100, 101)]


def test_the_last_used_beginnings_are_kept() -> None:
    slots = SlotCache(max_rows=8, max_length=256, max_tokens=512)
    first, second, third = ([stem] * 100 for stem in (1, 2, 3))
    for row, tokens in enumerate((first, second)):
        assert admitted(slots, row, tokens) == 0
        slots.release([row])
    assert slots.size == Resize(2, 256), "memory that no live row needs keeps what has ended"
    assert admitted(slots, 2, [*first, 5]) == 100
    slots.release([2])
    assert admitted(slots, 3, third) == 0
    slots.release([3])
    assert slots.match(Claim(4, [*first, 7], 100, exact=False)) == 100
    assert slots.match(Claim(4, [*second, 7], 100, exact=False)) == 0


def test_short_beginnings_are_not_worth_it() -> None:
    slots = SlotCache(max_rows=2, max_length=256)
    admitted(slots, 0, [1] * (MIN_REUSE - 1))
    assert slots.match(Claim(1, [1] * 99, 98, exact=False)) == 0


def test_blocks_are_evicted_from_the_end_of_the_least_used() -> None:
    cache = BlockCache(4, 64, 4, 8)
    admitted(cache, 0, [1] * 16)
    admitted(cache, 1, [2] * 16)
    cache.release([0])
    cache.release([1])
    assert admitted(cache, 2, [3] * 8) == 0  # two blocks of the first, its last ones
    assert cache.match(Claim(3, [1] * 17, 17, exact=False)) == 8
    assert cache.match(Claim(3, [2] * 17, 17, exact=False)) == 16


def test_blocks_grow_before_they_evict_if_there_is_memory() -> None:
    for grow_first, blocks in ((False, 16), (True, 32)):
        cache = BlockCache(4, 64, 4, 32, grow_first=grow_first)
        for row in range(5):
            admitted(cache, row, [row] * 16)
            cache.release([row])
        assert cache.size == Resize(blocks, 4)


def test_a_fork_of_blocks_copies_the_last_one_alone() -> None:
    cache = BlockCache(4, 64, 8, 20)
    prompt = list(range(21))
    admitted(cache, 0, prompt)
    cache.take_commands()
    assert cache.fork(0, 1, [*prompt, 5])
    (command,) = cache.take_commands()
    assert isinstance(command, BlockCopy)
    assert (command.start, command.end) == (0, 5)
    assert (cache.table([0])[0, :2] == cache.table([1])[0, :2]).all()


@pytest.mark.parametrize("layout", ["slots", "paged"])
def test_held_room_is_for_nobody_else(layout: str) -> None:
    cache: KVCache = SlotCache(4, 256, 1024) if layout == "slots" else BlockCache(4, 256, 16, 64)
    claim = Claim(0, [1, 2, 3], 0, exact=True, rows=3, length=250)
    assert cache.admit(claim) == 0
    cache.reserve(2, 250)
    cache.computed(0, 3, prefilled=True)
    cache.promote(0)
    assert cache.free_rows == 1
    assert cache.admit(Claim(1, [5] * 100, 0, exact=True)) == 0
    assert not cache.grow(1, 257)
    assert cache.admit(Claim(2, [5], 0, exact=True)) is None
    for child in (3, 4):
        cache.reserve(-1, 250)
        assert cache.fork(0, child, [1, 2, 3])
    assert cache.reserved_rows == 0
    assert cache.grow(0, 250)
    assert cache.grow(3, 250)
    assert cache.grow(4, 250)


def test_room_for_a_prompt_that_is_yet_to_be_computed_is_not_given_away() -> None:
    slots = SlotCache(max_rows=4, max_length=1024, max_tokens=1024)
    assert slots.admit(Claim(0, [1] * 600, 0, exact=False)) == 0
    assert slots.admit(Claim(1, [9], 0, exact=False)) is None
    assert slots.size == Resize(1, 1024)


def test_what_a_row_leaves_in_the_middle_is_kept_where_a_slot_is_free() -> None:
    slots = SlotCache(max_rows=4, max_length=256)
    for row in range(3):
        admitted(slots, row, [row] * 50)
    assert slots.size == Resize(4, 256)
    slots.release([0])
    assert slots.table(slots.decoding).tolist() == [[0], [1]]
    assert slots.match(Claim(5, [0] * 50, 49, exact=False)) == 49


def test_a_block_that_is_taken_over_is_not_free_for_the_rest() -> None:
    cache = BlockCache(4, 64, 4, 4)
    admitted(cache, 0, [1] * 12)
    cache.release([0])
    assert cache.admit(Claim(1, [1] * 20, 19, exact=False)) is None
    assert cache.admit(Claim(1, [1] * 16, 15, exact=False)) == 12


def test_a_budget_is_kept_to_the_last_token() -> None:
    for budget in range(2, 60):
        slots = SlotCache(max_rows=3, max_length=41, max_tokens=budget)
        for row in range(3):
            tokens = [row] * min(slots.max_length, 9 + 5 * row)
            if slots.admit(Claim(row, tokens, 0, exact=False)) is not None:
                slots.computed(row, len(tokens), prefilled=True)
                slots.promote(row)
        size = slots.size
        assert size.block_size % 2 == 0
        assert 0 < size.blocks * size.block_size <= budget


@pytest.mark.parametrize("invariant", [True, False])
def test_what_two_rows_computed_alike_is_copied_where_it_may_differ(invariant: bool) -> None:
    slots = SlotCache(max_rows=2, max_length=256, invariant=invariant)
    for row in range(2):
        slots.admit(Claim(row, [7] * 50, 0, exact=False))
        slots.computed(row, 50, prefilled=True)
        slots.promote(row)
    slots.take_commands()
    slots.release([0])
    assert slots.take_commands() == ([] if invariant else [BlockCopy(1, 0, 0, 50)])
