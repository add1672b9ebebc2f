"""EngineCore over an engine whose answers betray any wrong slot, past, copy or order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime import scoring
from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.requests.generation import Generation, Request
from enginewright.runtime.requests.group import RequestGroup
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.sampler import SampledToken, Sampler
from enginewright.runtime.scheduling.core import EngineCore, step_batch

GREEDY = SamplingParams(temperature=0.0, max_tokens=6)


def generation(
    core_engine: Any,
    number: int,
    prompt: Sequence[int],
    params: SamplingParams = GREEDY,
    **more: Any,
) -> Generation:
    info = core_engine.describe()
    sampler = more.pop("sampler", None) or Sampler(params, info.vocab_size, (), prompt, 0)
    request = Request(number, None, tuple(prompt), params)
    return Generation(request, sampler, max_context=info.max_context, **more)


def alone(each: Generation) -> RequestGroup:
    return RequestGroup([each])


def run(core: EngineCore, generations: Sequence[Generation]) -> None:
    for each in generations:
        core.add(alone(each))
    while core.busy:
        core.step()


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 30), min_size=1, max_size=40),  # prompt
        st.integers(1, 20),  # tokens to generate
        st.integers(0, 25),  # step before which it arrives
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=60)
@given(
    requests=REQUESTS,
    batch=st.integers(1, 4),
    extend=st.integers(0, 1),
    max_tokens=st.integers(4, 32),
)
def test_any_mix_gives_what_each_request_gives_alone(
    null_engine: Any,
    requests: list[tuple[list[int], int, int]],
    batch: int,
    extend: int,
    max_tokens: int,
) -> None:
    engine = null_engine(max_batch=batch, steps=(batch, batch, extend))
    core = EngineCore(engine, max_tokens)
    generations = [
        generation(engine, number, prompt, SamplingParams(temperature=0, max_tokens=count))
        for number, (prompt, count, _) in enumerate(requests)
    ]
    coming = sorted(generations, key=lambda each: requests[each.request.id][2])
    step = 0
    while coming or core.busy:
        while coming and requests[coming[0].request.id][2] <= step:
            core.add(alone(coming.pop(0)))
        core.step()
        step += 1
    for each, (prompt, count, _) in zip(generations, requests, strict=True):
        assert each.output_token_ids == engine.continue_greedily(prompt, count)
        assert each.finish_reason == "length"
    assert engine.computed == sum(len(prompt) + count - 1 for prompt, count, _ in requests)


def test_rows_that_end_at_different_times_leave_the_others_right(null_engine: Any) -> None:
    engine = null_engine()
    core = EngineCore(engine, 16)
    prompts = [[1], [2, 3], [4, 5, 6], [7, 8], [9]]
    counts = [9, 2, 5, 3, 7]
    generations = [
        generation(engine, number, prompt, SamplingParams(temperature=0, max_tokens=count))
        for number, (prompt, count) in enumerate(zip(prompts, counts, strict=True))
    ]
    run(core, generations)
    expected = [engine.continue_greedily(*pair) for pair in zip(prompts, counts, strict=True)]
    assert [each.output_token_ids for each in generations] == expected


def test_the_cache_grows_under_running_rows(null_engine: Any) -> None:
    engine = null_engine(max_context=700)
    core = EngineCore(engine, 64)
    prompts = [[1, 2], list(range(30)) * 8]
    params = SamplingParams(temperature=0, max_tokens=300)
    generations = [generation(engine, n, prompt, params) for n, prompt in enumerate(prompts)]
    run(core, generations)
    assert engine.pool.shape == (2, 700)
    assert [each.output_token_ids for each in generations] == [
        engine.continue_greedily(prompt, 300) for prompt in prompts
    ]


def test_a_full_context_ends_a_request(null_engine: Any) -> None:
    engine = null_engine(max_context=10)
    each = generation(engine, 0, [1] * 7, SamplingParams(temperature=0, max_tokens=None))
    run(EngineCore(engine), [each])
    assert len(each.output_token_ids) == 3
    assert each.finish_reason == "length"


def test_eos_and_stop_tokens_end_a_request_and_say_why(null_engine: Any) -> None:
    engine = null_engine()
    ids = engine.continue_greedily([5], 6)
    end = ids.index(ids[3]) + 1
    eos = generation(engine, 0, [5], eos_token_ids={ids[3]})
    ignoring = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    ignored = generation(engine, 1, [5], ignoring, eos_token_ids={ids[3]})
    stopping = SamplingParams(temperature=0, max_tokens=6, stop_token_ids=[ids[3]])
    stopped = generation(engine, 2, [5], stopping)
    run(EngineCore(engine), [eos, ignored, stopped])
    results = [each.output() for each in (eos, ignored, stopped)]
    assert [result.token_ids for result in results] == [ids[:end], ids, ids[:end]]
    assert [result.finish_reason for result in results] == ["stop", "length", "stop"]
    assert [result.stop_reason for result in results] == [None, None, ids[3]]


def test_logprobs_come_for_every_token(null_engine: Any) -> None:
    engine = null_engine()
    params = SamplingParams(temperature=0, max_tokens=3, logprobs=2)
    each = generation(engine, 0, [5], params, token_text=str)
    run(EngineCore(engine), [each])
    result = each.output()
    assert result.logprobs is not None
    assert [next(iter(entry)) for entry in result.logprobs] == result.token_ids
    chosen = [entry[token] for entry, token in zip(result.logprobs, result.token_ids, strict=True)]
    assert [entry.rank for entry in chosen] == [1, 1, 1]
    assert [entry.decoded_token for entry in chosen] == [str(token) for token in result.token_ids]
    assert result.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in chosen))


class FailingSampler(Sampler):
    """Fails at its third token, as logits that are not numbers make it."""

    def sample(self, logits: Any, output_token_ids: Sequence[int]) -> SampledToken:
        if len(output_token_ids) == 2:
            raise EnginewrightError("no usable logits")
        return super().sample(logits, output_token_ids)


def test_a_request_that_fails_harms_no_other(null_engine: Any) -> None:
    engine = null_engine()
    core = EngineCore(engine)
    prompts = [[1, 2], [3], [4, 5]]
    generations = [
        generation(engine, 0, prompts[0]),
        generation(engine, 1, prompts[1], sampler=FailingSampler(GREEDY, 31, (), [3])),
        generation(engine, 2, prompts[2]),
    ]
    run(core, generations)
    assert [each.finish_reason for each in generations] == ["length", "error", "length"]
    for number in (0, 2):
        expected = engine.continue_greedily(prompts[number], 6)
        assert generations[number].output_token_ids == expected
    failed = generations[1]
    assert str(failed.error) == "no usable logits"
    assert failed.output().token_ids == engine.continue_greedily([3], 2)


def test_aborting_one_leaves_the_others(null_engine: Any) -> None:
    engine = null_engine(max_batch=2, steps=(2, 2, 1))
    core = EngineCore(engine)
    generations = [generation(engine, number, [number + 1]) for number in range(4)]
    groups = [alone(each) for each in generations]
    for each in groups:
        core.add(each)
    core.step()
    core.abort([groups[0], groups[3]])  # one runs, one still waits
    while core.busy:
        core.step()
    assert [each.finish_reason for each in generations] == ["abort", "length", "length", "abort"]
    for number in (1, 2):
        assert generations[number].output_token_ids == engine.continue_greedily([number + 1], 6)


def test_an_engine_that_fails_ends_all_and_can_be_used_again(null_engine: Any) -> None:
    engine = null_engine()
    core = EngineCore(engine)
    engine.fail_at = 3
    first = [generation(engine, number, [number + 1]) for number in range(2)]
    with pytest.raises(RuntimeError, match="the device is gone"):
        run(core, first)
    assert [each.finish_reason for each in first] == ["abort", "abort"]
    assert not core.busy
    engine.fail_at = None
    again = generation(engine, 9, [7, 8])
    run(core, [again])
    assert again.output_token_ids == engine.continue_greedily([7, 8], 6)


def test_deltas_add_up_to_the_output(null_engine: Any) -> None:
    engine = null_engine()
    core = EngineCore(engine)
    each = generation(engine, 0, [1])
    core.add(alone(each))
    deltas = []
    while core.busy:
        core.step()
        deltas.append(each.delta())
    tokens = [token for delta in deltas for token in delta.token_ids]
    assert tokens == each.output().token_ids
    assert [delta.finished() for delta in deltas] == [False] * 5 + [True]


def test_a_batch_is_right_padded_and_asks_for_last_positions() -> None:
    batch = step_batch([[5, 6, 7], [8]], [0, 4], np.array([[2], [3]], np.int32))
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.new_lengths.tolist() == [3, 1]
    assert batch.past_lengths.tolist() == [0, 4]
    assert batch.block_table.tolist() == [[2], [3]]
    assert batch.logits_index.tolist() == [2, 3]
    dtypes = [batch.input_ids, batch.new_lengths, batch.past_lengths, batch.block_table]
    assert [array.dtype for array in dtypes] == [np.int64, np.int32, np.int32, np.int32]


@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 100])
def test_scoring_in_chunks_gives_every_position(null_engine: Any, chunk: int) -> None:
    engine = null_engine()
    ids = [3, 1, 4, 1, 5, 9, 2]
    found = scoring.sequence_logits(EngineCore(engine), engine.describe(), ids, chunk)
    expected = [engine.logits(np.array(ids[: end + 1])) for end in range(len(ids))]
    assert np.array_equal(found, expected)


def test_scoring_a_batch_is_one_ragged_step(null_engine: Any) -> None:
    engine = null_engine()
    sequences = [[3, 1, 4], [1], [5, 9]]
    core = EngineCore(engine)
    found = scoring.batch_logits(core, sequences)
    assert engine.ran == [("prefill", 3, 3)]
    for ids, logits in zip(sequences, found, strict=True):
        expected = [engine.logits(np.array(ids[: end + 1])) for end in range(len(ids))]
        assert np.array_equal(logits, expected)
    again = generation(engine, 0, [7, 8])
    run(core, [again])
    assert again.output_token_ids == engine.continue_greedily([7, 8], 6), "the slots came back"


def test_closing_ends_what_runs(null_engine: Any) -> None:
    engine = null_engine()
    core = EngineCore(engine)
    each = generation(engine, 0, [1])
    core.add(alone(each))
    core.step()
    core.close()
    assert each.finish_reason == "abort"
    assert engine.closed == 1
