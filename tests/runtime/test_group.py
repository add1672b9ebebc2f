"""The outputs of one prompt, told as one: in one piece, in deltas, or when all are done."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.generation import Generation, Request
from enginewright.runtime.requests.group import RequestGroup
from enginewright.runtime.requests.outputs import RequestOutput
from enginewright.runtime.sampling.kinds import RequestOutputKind
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.repetition import RepetitionDetectionParams
from enginewright.runtime.sampling.sampler import Sampler
from enginewright.runtime.scheduling.core import EngineCore

PROMPT = (4, 1, 5, 9, 2, 6)
DELTA, CUMULATIVE, FINAL = (
    RequestOutputKind.DELTA,
    RequestOutputKind.CUMULATIVE,
    RequestOutputKind.FINAL_ONLY,
)


def group(engine: Any, params: SamplingParams, first: int = 0) -> RequestGroup:
    info = engine.describe()
    return RequestGroup(
        [
            Generation(
                Request(first + index, None, PROMPT, params, index),
                Sampler(params, info.vocab_size, (), PROMPT, 0, index),
                max_context=info.max_context,
                token_text=str,
            )
            for index in range(params.n)
        ]
    )


def follow(core: EngineCore, each: RequestGroup, kind: RequestOutputKind) -> list[RequestOutput]:
    """All that one is told who asks after every step."""
    core.add(each)
    told = []
    while core.busy:
        core.step()
        if (news := each.news(kind)) is not None:
            told.append(news)
    assert each.news(kind) is None
    return told


def test_outputs_come_in_order_and_differ(null_engine: Any) -> None:
    engine = null_engine()
    each = group(engine, SamplingParams(n=6, max_tokens=8, seed=1))
    assert follow(EngineCore(engine), each, FINAL) == [each.output()]
    output = each.output()
    assert output.finished
    assert [completion.index for completion in output.outputs] == list(range(6))
    assert len({tuple(completion.token_ids) for completion in output.outputs}) == 6
    assert all(completion.finished() for completion in output.outputs)
    alone = group(engine, SamplingParams(max_tokens=8, seed=1), first=50)
    follow(EngineCore(null_engine()), alone, FINAL)
    assert alone.output().outputs[0] == output.outputs[0], "index 0 is what n=1 gives"


def test_deltas_add_up(null_engine: Any) -> None:
    engine = null_engine()
    each = group(engine, SamplingParams(n=3, max_tokens=5, seed=1, logprobs=1))
    told = follow(EngineCore(engine, 4), each, DELTA)
    for index, completion in enumerate(each.output().outputs):
        parts = [part for news in told for part in news.outputs if part.index == index]
        assert [token for part in parts for token in part.token_ids] == completion.token_ids
        assert all(len(part.token_ids) == len(part.logprobs or ()) == 1 for part in parts)
        assert [part.finish_reason for part in parts] == [None] * 4 + ["length"]
    assert [news.finished for news in told] == [False] * (len(told) - 1) + [True]


def test_cumulative_news_hold_everything_so_far(null_engine: Any) -> None:
    engine = null_engine()
    each = group(engine, SamplingParams(max_tokens=4, seed=1))
    told = follow(EngineCore(engine), each, CUMULATIVE)
    ids = each.output().outputs[0].token_ids
    assert [news.outputs[0].token_ids for news in told] == [ids[:end] for end in range(1, 5)]


@pytest.mark.parametrize(("tokens", "sizes"), [(8, [1, 3, 3, 1]), (7, [1, 3, 3]), (1, [1])])
def test_an_interval_gathers_tokens_but_the_first_and_the_last(
    null_engine: Any, tokens: int, sizes: list[int]
) -> None:
    engine = null_engine()
    each = group(engine, SamplingParams(max_tokens=tokens, seed=1, stream_interval=3))
    told = follow(EngineCore(engine), each, DELTA)
    assert [len(news.outputs[0].token_ids) for news in told] == sizes


def test_moments_are_in_order(null_engine: Any) -> None:
    engine = null_engine()
    each = group(engine, SamplingParams(n=2, max_tokens=3))
    assert each.output().metrics is not None
    follow(EngineCore(engine), each, FINAL)
    metrics = each.output().metrics
    assert metrics is not None
    assert metrics.first_scheduled_time is not None
    assert metrics.first_token_time is not None
    assert metrics.finished_time is not None
    assert metrics.arrival_time <= metrics.first_scheduled_time <= metrics.first_token_time
    assert metrics.first_token_time <= metrics.finished_time


def test_a_request_is_scheduled_when_there_is_room_for_it(null_engine: Any) -> None:
    engine = null_engine(max_batch=1)
    core = EngineCore(engine)
    both = [group(engine, SamplingParams(max_tokens=3), first) for first in (0, 1)]
    for each in both:
        core.add(each)
    core.step()
    waiting = both[1].output().metrics
    assert waiting is not None
    assert waiting.first_scheduled_time is None
    while core.busy:
        core.step()
    first, second = (each.output().metrics for each in both)
    assert first is not None
    assert first.finished_time is not None
    assert second is not None
    assert second.first_scheduled_time is not None
    assert second.arrival_time < first.finished_time <= second.first_scheduled_time


def test_one_failed_output_does_not_fail_the_others(null_engine: Any) -> None:
    engine = null_engine()
    calls = []

    def fails_once(ids: list[int], row: Any) -> Any:
        calls.append(ids)
        if len(calls) == 2:
            raise OSError("gone")
        return row

    params = SamplingParams(n=2, max_tokens=3, logits_processors=[fails_once])
    each = group(engine, params)
    other = group(engine, SamplingParams(temperature=0, max_tokens=3), first=9)
    core = EngineCore(engine)
    core.add(other)
    follow(core, each, FINAL)
    assert sorted(str(c.finish_reason) for c in each.output().outputs) == ["error", "length"]
    assert isinstance(each.output().error, RequestError)
    assert not each.failed
    expected = engine.continue_greedily(PROMPT, 3)
    assert other.output().outputs[0].token_ids == expected


def log_softmax(row: Any) -> Any:
    wide = row.astype(np.float64)
    return wide - np.log(np.exp(wide).sum())


@pytest.mark.parametrize("max_tokens_per_step", [4, 5, 100])
@pytest.mark.parametrize("extend", [0, 1])
def test_prompts_are_scored_in_whatever_chunks_they_run(
    null_engine: Any, max_tokens_per_step: int, extend: int
) -> None:
    engine = null_engine(steps=(4, 4, extend))
    core = EngineCore(engine, max_tokens_per_step)
    named = [3, 8]
    params = SamplingParams(
        n=2,
        max_tokens=2,
        seed=1,
        prompt_logprobs=2,
        prompt_logprob_token_ids=named,
        prompt_logprob_start=3,
    )
    plain = group(engine, SamplingParams(temperature=0, max_tokens=4), first=9)
    core.add(plain)  # beside one that is not scored
    each = group(engine, params)
    follow(core, each, FINAL)
    output = each.output()
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(PROMPT)
    rows = [log_softmax(engine.logits(np.array(PROMPT[:end]))) for end in range(1, len(PROMPT))]
    for row, token, scores in zip(rows, PROMPT[1:], output.prompt_logprobs[1:], strict=True):
        assert scores is not None
        best = np.argsort(-row, kind="stable")[:2].tolist()
        assert list(scores) == [token, *(other for other in best if other != token)]
        assert scores[token].rank == np.count_nonzero(row >= row[token])
        assert scores[token].decoded_token == str(token)
        for other, logprob in scores.items():
            assert logprob.logprob == pytest.approx(row[other], abs=1e-5)
    expected = np.array(rows)[3:, named]
    assert output.prompt_token_id_logprobs is not None
    np.testing.assert_allclose(output.prompt_token_id_logprobs, expected, atol=1e-5)
    assert plain.output().prompt_logprobs is None
    assert plain.output().outputs[0].token_ids == engine.continue_greedily(PROMPT, 4)


def test_all_of_the_vocabulary_or_only_the_prompts_own_token(null_engine: Any) -> None:
    for count, sizes in ((-1, {31}), (0, {1})):
        engine = null_engine()
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=count)
        each = group(engine, params)
        follow(EngineCore(engine), each, FINAL)
        scores = each.output().prompt_logprobs
        assert scores is not None
        assert {len(entry) for entry in scores if entry is not None} == sizes
        assert each.output().prompt_token_id_logprobs is None


def test_a_repetition_ends_an_output(null_engine: Any) -> None:
    engine = null_engine()
    detect = RepetitionDetectionParams(max_pattern_size=2, min_count=3)
    fields: dict[str, Any] = {"allowed_token_ids": [5], "temperature": 0, "max_tokens": 9}
    for minimum, length in ((0, 3), (6, 6)):
        each = group(
            engine, SamplingParams(repetition_detection=detect, min_tokens=minimum, **fields)
        )
        follow(EngineCore(null_engine()), each, FINAL)
        completion = each.output().outputs[0]
        assert completion.token_ids == [5] * length
        assert completion.finish_reason == "repetition"
        assert completion.stop_reason == "repetition_detected"
    each = group(engine, SamplingParams(repetition_detection=RepetitionDetectionParams(), **fields))
    follow(EngineCore(null_engine()), each, FINAL)
    assert each.output().outputs[0].finish_reason == "length"
