"""Scheduler: which rows run when, without any engine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enginewright.runtime.engine import StepSupport
from enginewright.runtime.kv_cache import SlotManager
from enginewright.runtime.scheduler import RowPart, Scheduler, StepPlan


def scheduler(
    *, batch: int = 4, extend: int = 1, prefill: int = 4, max_tokens: int = 8
) -> tuple[Scheduler, SlotManager]:
    slots = SlotManager(max_slots=batch, max_capacity=1000)
    steps = StepSupport(decode=batch, prefill=prefill, extend=extend)
    return Scheduler(steps, slots, max_tokens), slots


def advance(plans: Scheduler) -> StepPlan:
    """Run a step in which every row that is ready gets a token."""
    plan = plans.plan()
    assert plan is not None
    for row in plans.complete(plan):
        plans.append(row)
    return plan


def test_nothing_to_do_is_no_plan() -> None:
    plans, _ = scheduler()
    assert plans.plan() is None


def test_a_prompt_is_prefilled_then_decodes() -> None:
    plans, _ = scheduler()
    plans.add(7, 5)
    assert advance(plans) == StepPlan("prefill", 0, (RowPart(7, 0, 5),))
    assert advance(plans) == StepPlan("decode", 0, (RowPart(7, 5, 6),))
    assert advance(plans) == StepPlan("decode", 0, (RowPart(7, 6, 7),))


def test_waiting_prompts_share_a_padded_prefill() -> None:
    plans, _ = scheduler(max_tokens=8)
    for row, tokens in enumerate((2, 4, 3)):
        plans.add(row, tokens)
    # 2 rows of 4 fill 8 padded tokens; a third row would not fit
    assert advance(plans) == StepPlan("prefill", 0, (RowPart(0, 0, 2), RowPart(1, 0, 4)))
    assert advance(plans).kind == "decode"
    assert advance(plans) == StepPlan("prefill", 2, (RowPart(2, 0, 3),))
    assert advance(plans) == StepPlan(
        "decode", 0, (RowPart(0, 3, 4), RowPart(1, 5, 6), RowPart(2, 3, 4))
    )


def test_the_engines_rows_bound_a_prefill() -> None:
    plans, _ = scheduler(prefill=2, max_tokens=100)
    for row in range(4):
        plans.add(row, 3)
    assert [part.row for part in advance(plans).parts] == [0, 1]


def test_a_long_prompt_comes_in_chunks_between_decode_steps() -> None:
    plans, _ = scheduler(max_tokens=8)
    plans.add(0, 2)
    advance(plans)
    plans.add(1, 20)
    plans.add(2, 1)
    seen = [advance(plans) for _ in range(9)]
    assert [plan.kind for plan in seen] == [
        *("decode", "prefill", "decode", "extend", "decode", "extend"),
        *("decode", "prefill", "decode"),
    ]
    chunks = [plan.parts for plan in seen if plan.kind != "decode"]
    assert chunks == [
        (RowPart(1, 0, 8),),
        (RowPart(1, 8, 16),),
        (RowPart(1, 16, 20),),
        (RowPart(2, 0, 1),),
    ]
    assert [len(plan.parts) for plan in seen if plan.kind == "decode"] == [1, 1, 1, 2, 3]
    assert all(plan.first_slot == 1 for plan in seen if plan.kind == "extend")


def test_a_last_token_alone_is_a_decode_step() -> None:
    plans, _ = scheduler(max_tokens=8)
    plans.add(0, 9)
    assert advance(plans) == StepPlan("prefill", 0, (RowPart(0, 0, 8),))
    assert advance(plans) == StepPlan("decode", 0, (RowPart(0, 8, 9),))


def test_an_engine_without_extend_gets_whole_prompts() -> None:
    plans, _ = scheduler(extend=0, max_tokens=8)
    plans.add(0, 20)
    plans.add(1, 2)
    assert advance(plans) == StepPlan("prefill", 0, (RowPart(0, 0, 20),))


def test_a_plan_that_did_not_run_is_planned_again() -> None:
    plans, _ = scheduler()
    plans.add(0, 3)
    plans.add(1, 2)
    assert plans.plan() == plans.plan()
    assert [part.row for part in advance(plans).parts] == [0, 1]


def test_removing_waiting_and_running_rows_frees_them() -> None:
    plans, slots = scheduler(batch=2)
    for row in range(4):
        plans.add(row, 3)
    advance(plans)
    assert plans.remove([0, 2]) == [(1, 0)]
    assert set(plans.rows) == {1, 3}
    assert slots.free == 1
    plans.remove([1, 3])
    assert slots.free == 2
    assert plans.plan() is None


ROWS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=12)


@given(
    rows=ROWS,
    batch=st.integers(1, 5),
    prefill=st.integers(1, 5),
    extend=st.integers(0, 1),
    max_tokens=st.integers(2, 16),
)
def test_every_token_is_computed_once_and_no_row_starves(
    rows: list[tuple[int, int]], batch: int, prefill: int, extend: int, max_tokens: int
) -> None:
    plans, slots = scheduler(batch=batch, extend=extend, prefill=prefill, max_tokens=max_tokens)
    for row, (prompt, _) in enumerate(rows):
        plans.add(row, prompt)
    computed = dict.fromkeys(range(len(rows)), 0)
    produced = dict.fromkeys(range(len(rows)), 0)
    idle = dict.fromkeys(range(len(rows)), 0)
    first_token: list[int] = []
    while (plan := plans.plan()) is not None:
        decoding = set(slots.decoding)
        for part in plan.parts:
            assert part.start == computed[part.row]
            computed[part.row] = part.end
        ran = {part.row for part in plan.parts}
        for row in decoding:
            idle[row] = 0 if row in ran else idle[row] + 1
            assert idle[row] <= 1, "a decoding row waits for at most one prefill step"
        ended = []
        for row in plans.complete(plan):
            first_token += [row] if not produced[row] else []
            produced[row] += 1
            plans.append(row)
            ended += [row] if produced[row] == rows[row][1] else []
        plans.remove(ended)
    assert first_token == sorted(first_token), "first come, first served"
    assert [computed[row] for row in range(len(rows))] == [p + n - 1 for p, n in rows]
    assert slots.free == batch
