"""Where room is short, drafts drive out nobody: the schedule is the one without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.engine import StepSupport
from enginewright.runtime.kv_cache.blocks import BlockCache
from enginewright.runtime.kv_cache.cache import KVCache
from enginewright.runtime.kv_cache.slots import SlotCache
from enginewright.runtime.scheduling.row import Row
from enginewright.runtime.scheduling.scheduler import Drafter, Scheduler

Step = list[tuple[int, int, int]]

MOST = 5


class Simulation:
    """Rows of which each has a prompt and a number of tokens to come; drafts are always wrong."""

    def __init__(self, cache: KVCache, rows: Sequence[tuple[int, int]], *, drafts: bool) -> None:
        drafter: Drafter | None = self._draft if drafts else None
        self.plans = Scheduler(StepSupport(4, 4, 4), cache, 30, drafter)
        self.left = {number: count for number, (_, count) in enumerate(rows)}
        self.drafted = 0
        for number, (prompt, _) in enumerate(rows):
            self.plans.add(Row(number, [1000 * number + at for at in range(prompt)]))

    def step(self) -> Step:
        """Each row that is ready gets a token; who has all of them leaves."""
        plan = self.plans.plan()
        if plan is None:
            return []
        ready = self.plans.complete(plan)
        for part in plan.parts:
            if part.draft:
                self.drafted += 1
                self.plans.keep(part.row, 0)
        for row in ready:
            row.tokens.append(-1)
            self.left[row.id] -= 1
        self.plans.remove([row for row in ready if not self.left[row.id]])
        return [(part.row.id, part.start, part.end) for part in plan.parts]

    def _draft(
        self, rows: Sequence[Row], step: Sequence[Row], most: int
    ) -> Mapping[int, list[int]]:
        limits = {row.id: min(MOST, most, self.left[row.id] - 1) for row in rows}
        return {row: [0] * limit for row, limit in limits.items() if limit > 0}


def small(layout: str, tokens: int) -> KVCache:
    """Keeps nothing of rows that are not live: of that, drafts may take the room."""
    if layout == "slots":
        return SlotCache(4, 60, tokens, keep=False)
    return BlockCache(4, 60, 4, tokens // 4, keep=False)


@pytest.mark.parametrize("layout", ["slots", "paged"])
@settings(max_examples=150)
@given(
    rows=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 25)), min_size=2, max_size=8),
    tokens=st.integers(60, 150),
)
def test_drafts_that_are_wrong_change_no_step(
    layout: str, rows: list[tuple[int, int]], tokens: int
) -> None:
    plain, drafting = (
        Simulation(small(layout, tokens), rows, drafts=drafts) for drafts in (False, True)
    )
    while step := plain.step():
        assert drafting.step() == step
    assert drafting.plans.preemptions == plain.plans.preemptions


def test_after_a_row_gave_up_its_room_nothing_is_drafted_until_one_has_ended() -> None:
    """What is free still holds tokens of the row that waits: a draft would write over them."""
    run = Simulation(BlockCache(4, 60, 4, 16), [(7, 31), (18, 36), (16, 26)], drafts=True)
    while not run.plans.preemptions:
        run.step()
    assert run.drafted, "until then there was room for some"
    before = run.drafted
    while len(run.plans.rows) == 3:
        assert run.step()
        assert run.drafted == before
    while run.step():
        pass
    assert run.drafted > before
