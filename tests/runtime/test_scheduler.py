"""Scheduler: which rows run when, without any engine."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.engine import StepSupport
from enginewright.runtime.kv_cache.blocks import BlockCache
from enginewright.runtime.kv_cache.cache import KVCache
from enginewright.runtime.kv_cache.slots import SlotCache
from enginewright.runtime.scheduling.beam_rows import BeamRows
from enginewright.runtime.scheduling.row import Row
from enginewright.runtime.scheduling.scheduler import Scheduler, StepPlan

Step = tuple[str, list[tuple[int, int, int]]]


def scheduler(
    *,
    batch: int = 4,
    extend: int = 1,
    prefill: int = 4,
    max_tokens: int = 8,
    cache: KVCache | None = None,
    tokens: int = 0,
) -> Scheduler:
    steps = StepSupport(decode=batch, prefill=prefill, extend=extend, tokens=tokens)
    return Scheduler(steps, cache or SlotCache(batch, 1000), max_tokens)


def row(number: int, tokens: int, **more: bool | int) -> Row:
    """Tokens that no other row has."""
    return Row(number, [1000 * number + at for at in range(tokens)], **more)


def shown(plan: StepPlan | None) -> Step:
    assert plan is not None
    return plan.kind, [(part.row.id, part.start, part.end) for part in plan.parts]


def advance(plans: Scheduler) -> Step:
    """Run a step in which every row that is ready gets a token."""
    plan = plans.plan()
    assert plan is not None
    for each in plans.complete(plan):
        each.tokens.append(-1)
    return shown(plan)


def test_nothing_to_do_is_no_plan() -> None:
    assert scheduler().plan() is None


def test_a_prompt_is_prefilled_then_decodes() -> None:
    plans = scheduler()
    plans.add(row(7, 5))
    assert advance(plans) == ("prefill", [(7, 0, 5)])
    assert advance(plans) == ("decode", [(7, 5, 6)])
    assert advance(plans) == ("decode", [(7, 6, 7)])


def test_waiting_prompts_share_a_padded_prefill() -> None:
    plans = scheduler(max_tokens=8)
    for number, tokens in enumerate((2, 4, 3)):
        plans.add(row(number, tokens))
    # 2 rows of 4 fill 8 padded tokens; a third row would not fit
    assert advance(plans) == ("prefill", [(0, 0, 2), (1, 0, 4)])
    assert advance(plans)[0] == "decode"
    assert advance(plans) == ("prefill", [(2, 0, 3)])
    assert advance(plans) == ("decode", [(0, 3, 4), (1, 5, 6), (2, 3, 4)])


def test_a_short_prompt_beside_a_long_one_counts_as_long() -> None:
    plans = scheduler(max_tokens=8)
    plans.add(row(0, 7))
    plans.add(row(1, 1))
    assert advance(plans) == ("prefill", [(0, 0, 7)]), "2 rows of 7 would be padded to 14"
    assert advance(plans)[0] == "decode"
    assert advance(plans) == ("prefill", [(1, 0, 1)])


def test_the_engines_rows_bound_a_prefill() -> None:
    plans = scheduler(prefill=2, max_tokens=100)
    for number in range(4):
        plans.add(row(number, 3))
    assert [part[0] for part in advance(plans)[1]] == [0, 1]


def test_a_long_prompt_comes_in_chunks_between_decode_steps() -> None:
    plans = scheduler(max_tokens=8)
    plans.add(row(0, 2))
    advance(plans)
    plans.add(row(1, 20))
    plans.add(row(2, 1))
    seen = [advance(plans) for _ in range(9)]
    assert [kind for kind, _ in seen] == [
        *("decode", "prefill", "decode", "extend", "decode", "extend"),
        *("decode", "prefill", "decode"),
    ]
    chunks = [parts for kind, parts in seen if kind != "decode"]
    assert chunks == [[(1, 0, 8)], [(1, 8, 16)], [(1, 16, 20)], [(2, 0, 1)]]
    assert [len(parts) for kind, parts in seen if kind == "decode"] == [1, 1, 1, 2, 3]


def test_no_token_of_a_prompt_is_computed_alone() -> None:
    plans = scheduler(max_tokens=8)
    plans.add(row(0, 9))
    assert advance(plans) == ("prefill", [(0, 0, 7)])
    assert advance(plans) == ("extend", [(0, 7, 9)])


def test_an_engine_without_extend_gets_whole_prompts() -> None:
    plans = scheduler(extend=0, max_tokens=8)
    plans.add(row(0, 20))
    plans.add(row(1, 2))
    assert advance(plans) == ("prefill", [(0, 0, 20)])


def test_an_engine_that_extends_many_rows_gets_them_together() -> None:
    plans = scheduler(extend=4, max_tokens=100, cache=BlockCache(4, 1000, 16, 99))
    stem = list(range(64))
    plans.add(Row(0, [*stem, 1, 2]))
    advance(plans)
    for number in (1, 2, 3):
        plans.add(Row(number, [*stem, *[number] * number]))
    advance(plans)
    # of a last token alone nothing is left to extend: it decodes
    assert advance(plans) == ("extend", [(2, 64, 66), (3, 64, 67)])


def test_a_plan_that_did_not_run_is_planned_again() -> None:
    plans = scheduler()
    plans.add(row(0, 3))
    plans.add(row(1, 2))
    assert shown(plans.plan()) == shown(plans.plan())
    assert [part[0] for part in advance(plans)[1]] == [0, 1]


def test_a_prompt_that_begins_like_one_in_prefill_waits_for_it() -> None:
    plans = scheduler(max_tokens=200)
    stem = list(range(50))
    for number in range(3):
        plans.add(Row(number, [*stem, number, number]))
    assert advance(plans) == ("prefill", [(0, 0, 52)])
    assert advance(plans)[0] == "decode"
    assert advance(plans) == ("extend", [(1, 50, 52)])
    assert advance(plans)[0] == "decode"
    assert advance(plans) == ("extend", [(2, 50, 52)])


def test_removing_waiting_and_running_rows_frees_them() -> None:
    cache = SlotCache(2, 1000)
    plans = scheduler(batch=2, cache=cache)
    rows = [row(number, 3) for number in range(4)]
    for each in rows:
        plans.add(each)
    advance(plans)
    plans.remove([rows[0], rows[2]])
    assert set(plans.rows) == {1, 3}
    assert cache.free_rows == 1
    plans.remove([rows[1], rows[3]])
    assert cache.free_rows == 2
    assert plans.plan() is None


def test_the_youngest_gives_up_its_room_and_comes_back_first() -> None:
    cache = SlotCache(4, 1000, max_tokens=512)
    plans = scheduler(max_tokens=600, cache=cache)
    rows = [row(0, 255), row(1, 200)]
    for each in rows:
        plans.add(each)
    assert advance(plans) == ("prefill", [(0, 0, 255), (1, 0, 200)])
    assert advance(plans) == ("decode", [(0, 255, 256), (1, 200, 201)])
    plans.add(row(2, 3))
    assert advance(plans) == ("decode", [(0, 256, 257)])
    assert plans.preemptions == 1
    for _ in range(5):  # let in at once, it would be driven out again
        assert advance(plans)[1][0][0] == 0
    plans.remove([rows[0]])
    # it is not exact: what it had generated is computed together with its prompt
    assert advance(plans) == ("prefill", [(1, 0, 202), (2, 0, 3)])


def crowded() -> tuple[Scheduler, list[Row]]:
    """Two outputs of a prompt decode in 7 blocks; the third waits, and so does a later row.

    The third needs a single block, which is free, and would come first.
    """
    plans = scheduler(batch=3, max_tokens=100, cache=BlockCache(3, 60, 4, 7))
    rows = [row(0, 8), Row(1, [], index=1), Row(2, [], index=2), row(3, 8)]
    plans.add(rows[0])
    plans.add(rows[3])
    plan = plans.plan()
    assert plan is not None
    for each in plans.complete(plan):
        each.tokens.append(-1)
    for child in rows[1:3]:
        plans.fork(rows[0], child, 10 + child.id)
    for _ in range(5):
        advance(plans)
    assert plans.preemptions == 1
    assert not rows[3].live
    assert plans._cache.free_rows == 1
    return plans, rows


def test_who_would_be_driven_out_again_is_not_let_in() -> None:
    plans, rows = crowded()
    for at in (13, 14, 15):
        assert advance(plans) == ("decode", [(0, at, at + 1), (1, at, at + 1)])
    plans.remove(rows[1:2])
    assert advance(plans) == ("decode", [(0, 16, 17), (2, 8, 9)])
    assert plans.preemptions == 1


def test_one_who_leaves_the_queue_makes_no_room() -> None:
    plans, rows = crowded()
    plans.remove(rows[3:])
    assert [part[0] for part in advance(plans)[1]] == [0, 1]
    assert not rows[2].live


def test_a_scheduler_that_was_reset_lets_in_who_comes() -> None:
    plans, _ = crowded()
    plans.reset()
    plans.add(row(7, 4))
    assert advance(plans) == ("prefill", [(7, 0, 4)])
    plans.add(row(8, 4))
    assert advance(plans) == ("decode", [(7, 4, 5)])
    assert advance(plans) == ("prefill", [(8, 0, 4)])


def test_a_step_holds_no_more_positions_than_the_engine_takes() -> None:
    plans = scheduler(max_tokens=100, tokens=12, extend=1)
    for each in (row(0, 5), row(1, 6), row(2, 2), row(3, 30)):
        plans.add(each)
    assert advance(plans) == ("prefill", [(0, 0, 5), (1, 0, 6)])
    steps = [advance(plans) for _ in range(8)]
    assert [step for step in steps if step[0] != "decode"] == [
        ("prefill", [(2, 0, 2)]),
        ("prefill", [(3, 0, 12)]),
        ("extend", [(3, 12, 24)]),
        ("extend", [(3, 24, 30)]),
    ]


def test_a_row_that_only_decodes_does_not_overtake_one_in_prefill() -> None:
    plans = scheduler(extend=2, max_tokens=200)
    known = row(0, 100)
    plans.add(known)
    advance(plans)
    longer = Row(1, [*known.tokens[:100], 7, 8, 9])
    same = Row(2, known.tokens[:100])
    for each in (longer, same):
        plans.add(each)
    assert [advance(plans) for _ in range(4)] == [
        ("decode", [(0, 100, 101)]),
        ("extend", [(1, 100, 103)]),
        ("decode", [(0, 101, 102), (1, 103, 104)]),
        ("decode", [(0, 102, 103), (1, 104, 105), (2, 99, 100)]),
    ]


def test_an_exact_row_computes_its_output_one_by_one_again() -> None:
    cache = SlotCache(4, 1000, max_tokens=512, keep=False)
    plans = scheduler(max_tokens=600, cache=cache)
    rows = [row(0, 254, exact=True), row(1, 200, exact=True)]
    for each in rows:
        plans.add(each)
    for _ in range(4):
        advance(plans)
    assert plans.preemptions == 1
    plans.remove([rows[0]])
    assert advance(plans) == ("prefill", [(1, 0, 200)])
    assert [advance(plans) for _ in range(3)] == [
        ("decode", [(1, at, at + 1)]) for at in (200, 201, 202)
    ]
    assert rows[1].tokens[200:] == [-1] * 4


def test_a_fork_decodes_at_once_or_waits_for_room() -> None:
    plans = scheduler(batch=2)
    parent = row(0, 5)
    plans.add(parent)
    plan = plans.plan()
    assert plan is not None
    assert plans.complete(plan) == [parent]
    children = [Row(number, [], index=number) for number in (1, 2)]
    for child, token in zip(children, (8, 9), strict=True):
        plans.fork(parent, child, token)
    parent.tokens.append(7)
    assert advance(plans) == ("decode", [(0, 5, 6), (1, 5, 6)])
    plans.remove([parent])
    assert advance(plans) == ("prefill", [(2, 0, 6)])
    assert children[1].tokens == [*range(5), 9, -1]


def beams(plans: Scheduler, width: int, prompt: int, total: int, first: int = 0) -> BeamRows:
    tokens = [1000 * first + at for at in range(prompt)]
    rows = [Row(first, tokens, exact=True, rows=width, length=total)]
    rows += [Row(first + at, [], exact=True) for at in range(1, width)]
    plans.add(rows[0])
    return BeamRows(rows)


@pytest.mark.parametrize("layout", ["slots", "paged"])
def test_beams_come_all_or_not_at_all_and_leave_nothing_behind(layout: str) -> None:
    cache: KVCache = SlotCache(4, 100, 400) if layout == "slots" else BlockCache(4, 100, 4, 100)
    plans = scheduler(max_tokens=50, cache=cache)
    other = row(9, 6)
    plans.add(other)
    advance(plans)
    search = beams(plans, 4, 5, 60)
    assert advance(plans) == ("decode", [(9, 6, 7)])  # not even its prompt
    plans.remove([other])
    assert advance(plans) == ("prefill", [(0, 0, 5)])
    search.live[0].tokens.pop()
    plans.add(row(10, 6))
    plans.branch(search, [(0, 50), (0, 51), (0, 52)])
    seen = [[each.tokens[5:] for each in search.live]]
    for branches in ([(2, 1), (0, 2), (2, 3)], [(0, 4), (1, 5), (2, 6), (0, 7)], [(3, 8), (3, 9)]):
        plan = plans.plan()
        assert shown(plan)[0] == "decode", "the fourth place is held"
        assert plan is not None
        assert len(plans.complete(plan)) == len(search.live)
        plans.branch(search, branches)
        seen.append([each.tokens[5:] for each in search.live])
    assert seen == [
        [[50], [51], [52]],
        [[52, 1], [50, 2], [52, 3]],
        [[52, 1, 4], [50, 2, 5], [52, 3, 6], [52, 1, 7]],
        [[52, 1, 7, 8], [52, 1, 7, 9]],
    ]
    plans.remove_beams(search)
    assert cache.reserved_rows == 0
    assert cache.free_rows == 4
    assert advance(plans) == ("prefill", [(10, 0, 6)])


ROWS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 12), st.booleans()), min_size=1, max_size=12
)


@settings(max_examples=200)
@given(
    rows=ROWS,
    batch=st.integers(1, 5),
    prefill=st.integers(1, 5),
    extend=st.integers(0, 1),
    max_tokens=st.integers(4, 16),
)
def test_every_token_is_computed_once_and_no_row_starves(
    rows: list[tuple[int, int, bool]], batch: int, prefill: int, extend: int, max_tokens: int
) -> None:
    cache = SlotCache(batch, 1000)
    plans = scheduler(
        batch=batch, extend=extend, prefill=prefill, max_tokens=max_tokens, cache=cache
    )
    all_rows = [row(number, prompt, exact=exact) for number, (prompt, _, exact) in enumerate(rows)]
    for each in all_rows:
        plans.add(each)
    computed = dict.fromkeys(range(len(rows)), 0)
    idle = dict.fromkeys(range(len(rows)), 0)
    first_token: list[int] = []
    while (plan := plans.plan()) is not None:
        decoding = set(cache.decoding)
        for part in plan.parts:
            assert part.start == computed[part.row.id]
            computed[part.row.id] = part.end
        ran = {part.row.id for part in plan.parts}
        for number in decoding:
            idle[number] = 0 if number in ran else idle[number] + 1
            assert idle[number] <= 1, "a decoding row waits for at most one prefill step"
        ended = []
        for each in plans.complete(plan):
            first_token += [each.id] if len(each.tokens) == each.prompt else []
            each.tokens.append(-1)
            produced = len(each.tokens) - each.prompt
            ended += [each] if produced == rows[each.id][1] else []
        plans.remove(ended)
    assert first_token == sorted(first_token), "first come, first served"
    assert [computed[number] for number in range(len(rows))] == [p + n - 1 for p, n, _ in rows]
    assert cache.free_rows == batch


@settings(max_examples=200)
@given(rows=ROWS, memory=st.integers(60, 150), paged=st.booleans(), max_tokens=st.integers(4, 30))
def test_with_little_memory_all_come_to_their_end_in_a_bounded_number_of_steps(
    rows: list[tuple[int, int, bool]], memory: int, paged: bool, max_tokens: int
) -> None:
    cache: KVCache = BlockCache(4, 60, 4, memory // 4) if paged else SlotCache(4, 60, memory)
    plans = scheduler(max_tokens=max_tokens, cache=cache)
    for number, (prompt, _, exact) in enumerate(rows):
        plans.add(row(number, prompt, exact=exact))
    ended: list[int] = []
    steps = 0
    while (plan := plans.plan()) is not None:
        steps += 1
        gone: Sequence[Row] = []
        for each in plans.complete(plan):
            each.tokens.append(-1)
            if len(each.tokens) - each.prompt == rows[each.id][1]:
                gone = [*gone, each]
        ended += [each.id for each in gone]
        plans.remove(gone)
    assert sorted(ended) == list(range(len(rows)))
    tokens = sum(prompt + count for prompt, count, _ in rows)
    assert steps <= tokens * (1 + plans.preemptions)
    assert plans.preemptions <= len(rows) ** 2
    assert cache.free_rows == 4
