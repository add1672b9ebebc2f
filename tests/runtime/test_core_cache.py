"""EngineCore with little memory, shared beginnings, forks and both layouts: nothing shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.requests.generation import Generation, Request
from enginewright.runtime.requests.group import RequestGroup
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.sampler import Sampler
from enginewright.runtime.scheduling.core import EngineCore

STEMS = ((3, 1, 4, 1, 5, 9, 2, 6) * 5, (2, 7, 1, 8, 2, 8) * 7)


def group(
    engine: Any, first: int, prompt: Sequence[int], params: SamplingParams, context: int = 64
) -> RequestGroup:
    vocab = engine.describe().vocab_size
    return RequestGroup(
        [
            Generation(
                Request(first + index, None, tuple(prompt), params, index),
                Sampler(params, vocab, (), prompt, None, index),
                max_context=context,
            )
            for index in range(params.n)
        ]
    )


def run(core: EngineCore, groups: Sequence[RequestGroup]) -> None:
    for each in groups:
        core.add(each)
    while core.busy:
        core.step()


def ids(each: RequestGroup) -> list[list[int]]:
    return [completion.token_ids for completion in each.output().outputs]


REQUEST = st.tuples(
    st.integers(0, 1),  # stem
    st.integers(0, 40),  # of which so many tokens
    st.lists(st.integers(0, 30), min_size=1, max_size=8),  # and these behind it
    st.integers(1, 12),  # tokens to generate
    st.integers(1, 3),  # outputs
    st.integers(0, 20),  # step before which it arrives
    st.booleans(),  # aborted on the way
)
LAYOUTS = st.sampled_from([0, 4, 16])


@settings(max_examples=150)
@given(
    requests=st.lists(REQUEST, min_size=1, max_size=8),
    batch=st.integers(1, 5),
    extend=st.integers(0, 3),
    max_tokens=st.integers(4, 40),
    memory=st.one_of(st.none(), st.integers(64, 200)),
    block_size=LAYOUTS,
    keep=st.booleans(),
    rounding=st.booleans(),
)
def test_no_mix_and_no_shortage_shows_in_the_tokens(
    null_engine: Any,
    requests: list[tuple[int, int, list[int], int, int, int, bool]],
    batch: int,
    extend: int,
    max_tokens: int,
    memory: int | None,
    block_size: int,
    keep: bool,
    rounding: bool,
) -> None:
    extend = extend if block_size else min(extend, 1)
    engine = null_engine(
        max_batch=batch, steps=(batch, batch, extend), block_size=block_size, rounding=rounding
    )
    core = EngineCore(
        engine,
        max_tokens,
        kv_cache_memory_bytes=None if memory is None else 8 * memory,
        enable_prefix_caching=keep,
    )
    groups, prompts = [], []
    for number, (stem, length, more, count, n, _, _) in enumerate(requests):
        prompts.append([*STEMS[stem][:length], *more])
        params = SamplingParams(temperature=0, max_tokens=count)
        if n > 1:
            params = SamplingParams(seed=number, max_tokens=count, n=n)
        groups.append(group(engine, 10 * number, prompts[-1], params))
    coming = sorted(range(len(requests)), key=lambda at: requests[at][5])
    step, aborted = 0, set()
    while coming or core.busy:
        while coming and requests[coming[0]][5] <= step:
            core.add(groups[coming.pop(0)])
        core.step()
        step += 1
        for at, request in enumerate(requests):
            if request[6] and step == request[5] + 7:
                aborted |= {at} if not groups[at].finished else set()
                core.abort([groups[at]])
        assert step < 3000, "somebody starves"
    for at, each in enumerate(groups):
        alone = null_engine(max_batch=1, steps=(1, 1, 1), rounding=rounding)
        params = each.generations[0].request.params
        other = group(alone, 0, prompts[at], params)
        run(EngineCore(alone, enable_prefix_caching=False), [other])
        expected = ids(other)
        if at in aborted:
            assert [
                found == full[: len(found)] for found, full in zip(ids(each), expected, strict=True)
            ]
        else:
            assert ids(each) == expected
    cache = core._cache
    assert cache.held_rows == 0
    assert cache.free_rows == batch
    if block_size:
        assert cache.free_blocks == cache._max_blocks  # type: ignore[attr-defined]


@pytest.mark.parametrize("block_size", [0, 16])
def test_a_shared_beginning_is_computed_once(null_engine: Any, block_size: int) -> None:
    engine = null_engine(max_context=200, block_size=block_size, steps=(4, 4, 1))
    core = EngineCore(engine, 64)
    stem = list(range(31)) * 4  # 124 tokens
    params = SamplingParams(temperature=0, max_tokens=3)
    groups = [group(engine, n, [*stem, n, n + 1], params, 200) for n in range(4)]
    run(core, groups)
    shared = 112 if block_size else 124
    assert engine.computed == 126 + 3 * (126 - shared) + 4 * 2
    assert [each.output().num_cached_tokens for each in groups] == [0, shared, shared, shared]
    for n, each in enumerate(groups):
        assert ids(each) == [engine.continue_greedily([*stem, n, n + 1], 3)]


def test_a_conversation_goes_on_where_it_was(null_engine: Any) -> None:
    engine = null_engine(max_context=500, max_batch=1, steps=(1, 1, 1))
    core = EngineCore(engine)
    prompt = list(range(31)) * 2
    params = SamplingParams(seed=3, max_tokens=20)
    first = group(engine, 0, prompt, params, 500)
    run(core, [first])
    prompt = [*prompt, *ids(first)[0], 5, 6, 7]
    again = group(engine, 1, prompt, params, 500)
    run(core, [again])
    # a seeded request takes over what was computed together only: the prompt, not the answer
    assert again.output().num_cached_tokens == 62
    third = group(engine, 2, [*prompt, *ids(again)[0]], SamplingParams(max_tokens=20), 500)
    run(core, [third])
    assert third.output().num_cached_tokens == len(prompt) + 19
    assert engine.copied == 0, "in the same slot"


@pytest.mark.parametrize("block_size", [0, 16])
def test_without_prefix_caching_nothing_is_taken_over(null_engine: Any, block_size: int) -> None:
    engine = null_engine(max_context=200, block_size=block_size)
    core = EngineCore(engine, enable_prefix_caching=False)
    prompt = list(range(31)) * 4
    params = SamplingParams(max_tokens=3)
    groups = [group(engine, number, prompt, params, 200) for number in range(3)]
    run(core, groups)
    assert [each.output().num_cached_tokens for each in groups] == [0, 0, 0]
    assert engine.computed == 3 * (124 + 2)


@pytest.mark.parametrize("block_size", [0, 16])
def test_one_who_does_not_read_the_cache_computes_all(null_engine: Any, block_size: int) -> None:
    engine = null_engine(max_context=200, block_size=block_size)
    core = EngineCore(engine)
    prompt = list(range(31)) * 4
    run(core, [group(engine, 0, prompt, SamplingParams(temperature=0), 200)])
    params = SamplingParams(temperature=0, skip_reading_prefix_cache=True)
    fresh = group(engine, 1, prompt, params, 200)
    run(core, [fresh])
    assert fresh.output().num_cached_tokens == 0
    scored = group(engine, 2, prompt, SamplingParams(temperature=0, prompt_logprobs=1), 200)
    run(core, [scored])
    assert scored.output().num_cached_tokens == 0
    core.reset_prefix_cache()
    last = group(engine, 3, prompt, SamplingParams(temperature=0), 200)
    run(core, [last])
    assert last.output().num_cached_tokens == 0


def test_an_engine_whose_chunks_differ_lets_no_exact_request_take_over(null_engine: Any) -> None:
    engine = null_engine(max_context=200, chunk_invariant=False)
    core = EngineCore(engine)
    prompt = list(range(31)) * 4
    groups = [
        group(engine, number, prompt, params, 200)
        for number, params in enumerate(
            [SamplingParams(temperature=0), SamplingParams(temperature=0), SamplingParams()]
        )
    ]
    for each in groups:
        run(core, [each])
    assert [each.output().num_cached_tokens for each in groups] == [0, 0, 123]


def test_outputs_of_one_prompt_compute_it_once(null_engine: Any) -> None:
    engine = null_engine()
    each = group(engine, 0, list(range(20)), SamplingParams(n=4, seed=1, max_tokens=5))
    run(EngineCore(engine), [each])
    assert engine.computed == 20 + 4 * 4
    assert engine.copied == 3 * 20


@pytest.mark.parametrize("block_size", [0, 4])
def test_a_row_that_gave_up_its_room_loses_nothing(null_engine: Any, block_size: int) -> None:
    engine = null_engine(max_context=600, block_size=block_size)
    core = EngineCore(engine, 64, kv_cache_memory_bytes=8 * 700)
    params = SamplingParams(temperature=0, max_tokens=400)
    groups = [group(engine, n, [n, 7, n], params, 600) for n in range(4)]
    run(core, groups)
    assert core.preemptions > 0
    for n, each in enumerate(groups):
        assert ids(each) == [engine.continue_greedily([n, 7, n], 400)]
    assert engine.pool.size <= 700


@pytest.mark.parametrize("block_size", [0, 4])
def test_a_scored_prompt_survives_a_preemption(null_engine: Any, block_size: int) -> None:
    engine = null_engine(max_context=300, max_batch=3, steps=(3, 3, 1), block_size=block_size)
    core = EngineCore(engine, 16, kv_cache_memory_bytes=8 * 300)
    older = group(engine, 0, [1, 2], SamplingParams(temperature=0, max_tokens=290), 300)
    params = SamplingParams(temperature=0, max_tokens=200, prompt_logprobs=0)
    scored = group(engine, 1, list(range(31)) * 2, params, 300)
    run(core, [older, scored])
    assert core.preemptions > 0
    logprobs = scored.output().prompt_logprobs
    assert logprobs is not None
    assert len(logprobs) == 62


def test_a_cache_for_less_than_two_tokens_is_refused(null_engine: Any) -> None:
    with pytest.raises(EnginewrightError, match="kv_cache_memory_bytes=15 holds 1 tokens"):
        EngineCore(null_engine(), kv_cache_memory_bytes=15)


def test_little_memory_lowers_the_longest_request(null_engine: Any) -> None:
    core = EngineCore(null_engine(), kv_cache_memory_bytes=8 * 40)
    assert core.describe().max_context == 40
