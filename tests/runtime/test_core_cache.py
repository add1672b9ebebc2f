"""EngineCore with little memory, shared beginnings, forks and both layouts: nothing shows it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime import scoring
from enginewright.runtime.errors import EnginewrightError, RequestError
from enginewright.runtime.requests import running
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
    chunk_invariant=st.booleans(),
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
    chunk_invariant: bool,
) -> None:
    extend = extend if block_size else min(extend, 1)
    engine = null_engine(
        max_batch=batch,
        steps=(batch, batch, extend),
        block_size=block_size,
        rounding=rounding,
        chunk_invariant=chunk_invariant,
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
    assert cache.reserved_rows == 0
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
    alone = group(engine, 9, list(range(31)) * 2, params, 300)
    run(EngineCore(null_engine(max_context=300), 100), [alone])
    assert logprobs == alone.output().prompt_logprobs


def test_a_cache_for_less_than_two_tokens_is_refused(null_engine: Any) -> None:
    with pytest.raises(EnginewrightError, match="kv_cache_memory_bytes=15 holds 1 tokens"):
        EngineCore(null_engine(), kv_cache_memory_bytes=15)


def test_little_memory_lowers_the_longest_request(null_engine: Any) -> None:
    core = EngineCore(null_engine(), kv_cache_memory_bytes=8 * 40)
    assert core.describe().max_context == 40


def test_waiting_outputs_of_one_prompt_keep_to_the_rules_of_the_first(null_engine: Any) -> None:
    """Of three outputs one finds no room; when it comes in, nothing may be taken over."""
    for chunk_invariant, keep in ((False, True), (True, False)):
        engine = null_engine(
            max_context=200, max_batch=2, steps=(2, 2, 1), chunk_invariant=chunk_invariant
        )
        core = EngineCore(engine, enable_prefix_caching=keep)
        prompt = list(range(31)) * 3
        each = group(engine, 0, prompt, SamplingParams(n=3, seed=1, max_tokens=4), 200)
        run(core, [each])
        assert engine.computed == 2 * len(prompt) + 3 * 3


class Numberless:
    """An engine whose logits after a token are no numbers."""

    def __init__(self, engine: Any, token: int) -> None:
        self._engine, self._token = engine, token

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, batch: Any) -> Any:
        logits = self._engine.step(batch)
        width = batch.input_ids.shape[1]
        for at, index in enumerate(batch.logits_index):
            if batch.input_ids[divmod(int(index), width)] == self._token:
                logits[at] = float("nan")
        return logits


def test_a_prompt_that_cannot_be_scored_fails_alone(null_engine: Any) -> None:
    engine = null_engine()
    core = EngineCore(Numberless(engine, 13))
    params = SamplingParams(n=2, seed=1, max_tokens=3, prompt_logprobs=2)
    bad = group(engine, 0, [1, 13, 2, 3], params)
    good = group(engine, 5, [1, 2, 3], SamplingParams(temperature=0, max_tokens=2))
    run(core, [bad, good])
    assert [each.finish_reason for each in bad.output().outputs] == ["error", "error"]
    assert "no usable logits" in str(bad.error)
    assert ids(good) == [engine.continue_greedily([1, 2, 3], 2)]
    assert core._cache.free_rows == 4


def test_an_interrupt_while_planning_leaves_nothing_behind(
    null_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = null_engine()
    core = EngineCore(engine)
    each = group(engine, 0, [1, 2, 3], SamplingParams(temperature=0, max_tokens=9))
    core.add(each)
    core.step()
    with monkeypatch.context() as patch:
        patch.setattr(core._scheduler, "_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            core.step()
    assert each.output().outputs[0].finish_reason == "abort"
    assert not core.busy
    again = group(engine, 1, [4, 5], SamplingParams(temperature=0, max_tokens=3))
    run(core, [again])
    assert ids(again) == [engine.continue_greedily([4, 5], 3)]


def test_a_borrowed_engine_that_fails_is_as_new(null_engine: Any) -> None:
    engine = null_engine()
    core = EngineCore(engine)
    engine.fail_at = 0
    with pytest.raises(RuntimeError, match="the device is gone"):
        scoring.sequence_logits(core, engine.describe(), [1, 2, 3], 8)
    engine.fail_at = None
    each = group(engine, 0, [1, 2, 3], SamplingParams(temperature=0, max_tokens=3))
    run(core, [each])
    assert ids(each) == [engine.continue_greedily([1, 2, 3], 3)]


def test_a_stream_hears_of_the_end_of_its_engine(null_engine: Any) -> None:
    engine = null_engine()
    core = EngineCore(engine)
    params = SamplingParams(temperature=0, max_tokens=9)
    one, other = (running.stream(core, group(engine, n, [n + 1], params)) for n in (0, 1))
    next(one)
    next(other)
    engine.fail_at = 0
    with pytest.raises(RuntimeError, match="the device is gone"):
        list(one)
    assert [each.outputs[0].finish_reason for each in other][-1] == "abort"


def test_less_than_a_block_is_refused(null_engine: Any) -> None:
    with pytest.raises(EnginewrightError, match="at least 128 bytes"):
        EngineCore(null_engine(block_size=16), kv_cache_memory_bytes=8 * 5)


def test_a_processor_that_calls_its_own_engine_fails_alone(null_engine: Any) -> None:
    engine = null_engine()
    core = EngineCore(engine)

    def calls(tokens: list[int], logits: Any) -> Any:
        core.add(group(engine, 50, [1], SamplingParams()))
        return logits

    bad = group(engine, 0, [1, 2], SamplingParams(logits_processors=[calls]))
    good = group(engine, 1, [3, 4], SamplingParams(temperature=0, max_tokens=4))
    run(core, [bad, good])
    assert "must not call it" in str(bad.error)
    assert ids(good) == [engine.continue_greedily([3, 4], 4)]


def test_a_second_thread_is_refused_and_harms_nobody(null_engine: Any) -> None:
    engine = null_engine()
    core = EngineCore(engine)
    inside, go_on = threading.Event(), threading.Event()

    def waits(tokens: list[int], logits: Any) -> Any:
        inside.set()
        assert go_on.wait(60)
        return logits

    params = SamplingParams(temperature=0, max_tokens=3, logits_processors=[waits])
    one = group(engine, 0, [1, 2], params)
    thread = threading.Thread(target=run, args=(core, [one]))
    thread.start()
    assert inside.wait(60)
    other = group(engine, 1, [3, 4], SamplingParams(temperature=0))
    for call in (lambda: core.add(other), core.step):
        with pytest.raises(RequestError, match="one thread uses an LLM at a time"):
            call()
    go_on.set()
    thread.join()
    assert ids(one) == [engine.continue_greedily([1, 2], 3)]


def test_a_stream_that_is_closed_in_the_middle_of_a_step_ends_with_it(null_engine: Any) -> None:
    """As when it is collected as garbage while a step of the same thread runs."""
    engine = null_engine()
    core = EngineCore(engine)
    greedy = SamplingParams(temperature=0, max_tokens=30)
    closed = group(engine, 0, [1, 2], greedy)
    stream = running.stream(core, closed)
    next(stream)

    def closes(tokens: list[int], logits: Any) -> Any:
        stream.close()
        return logits

    params = SamplingParams(temperature=0, max_tokens=4, logits_processors=[closes])
    each = group(engine, 1, [3, 4], params)
    run(core, [each])
    assert ids(each) == [engine.continue_greedily([3, 4], 4)]
    assert closed.output().outputs[0].finish_reason == "abort"
    assert core._cache.free_rows == 4


def test_a_processor_cannot_close_the_engine_that_runs_it(null_engine: Any) -> None:
    engine = null_engine()
    core = EngineCore(engine)

    def closes(tokens: list[int], logits: Any) -> Any:
        core.close()
        return logits

    bad = group(engine, 0, [1, 2], SamplingParams(logits_processors=[closes]))
    good = group(engine, 1, [3, 4], SamplingParams(temperature=0, max_tokens=4))
    run(core, [bad, good])
    assert "must not call it" in str(bad.error)
    assert ids(good) == [engine.continue_greedily([3, 4], 4)]
    assert engine.closed == 0
