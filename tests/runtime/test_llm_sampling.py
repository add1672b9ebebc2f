"""Sampling parameters end to end on a tiny artifact."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.runtime import LLM, RequestError, SamplingParams, SamplingParamsError

BOS, EOS = 256, 257


@pytest.fixture(scope="module")
def llm(tiny_artifact: Path) -> Iterator[LLM]:
    with LLM(tiny_artifact, threads=1) as llm:
        yield llm


def test_n_outputs_repeat_whatever_runs_beside_them(llm: LLM) -> None:
    params = SamplingParams(n=5, seed=3, max_tokens=10)  # more than the engine's four rows
    (alone,) = llm.generate("Once", params)
    assert [completion.index for completion in alone.outputs] == list(range(5))
    assert len({tuple(completion.token_ids) for completion in alone.outputs}) == 5
    for completion in alone.outputs:
        assert completion.text == llm.get_tokenizer().decode(completion.token_ids)
    beside = llm.generate(["a", "Once", "longer than the others"], params)
    assert beside[1].outputs == alone.outputs
    (first,) = llm.generate("Once", SamplingParams(seed=3, max_tokens=10))
    assert first.outputs[0] == alone.outputs[0]


def test_n_outputs_without_a_seed_differ(llm: LLM) -> None:
    (output,) = llm.generate("Once", SamplingParams(n=3, max_tokens=12, ignore_eos=True))
    assert len({tuple(completion.token_ids) for completion in output.outputs}) == 3


def test_the_llms_seed_repeats_n_outputs(tiny_artifact: Path) -> None:
    params = SamplingParams(n=2, max_tokens=12)
    runs = []
    for _ in range(2):
        with LLM(tiny_artifact, threads=1, seed=5) as llm:
            outputs = llm.generate(["Hi", "Hi"], params)
            runs.append([c.token_ids for output in outputs for c in output.outputs])
    assert runs[0] == runs[1]
    assert len({tuple(ids) for ids in runs[0]}) == 4


def test_n_outputs_stream_together(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=3, max_tokens=9, stream_interval=2)
    (whole,) = llm.generate("Once", params)
    told = list(llm.stream("Once", params))
    for index, completion in enumerate(whole.outputs):
        parts = [part for news in told for part in news.outputs if part.index == index]
        assert "".join(part.text for part in parts) == completion.text
        assert parts[-1].finish_reason == completion.finish_reason
        assert max(len(part.token_ids) for part in parts) == 2
    assert told[-1].finished


def test_bad_words_are_never_completed(llm: LLM) -> None:
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 30, "ignore_eos": True}
    (free,) = llm.generate("Hello", SamplingParams(**fields))
    ids = free.outputs[0].token_ids
    pair = next(pair for pair in itertools.pairwise(ids) if max(pair) < 128 and _spelt(llm, pair))
    word = llm.get_tokenizer().decode(pair).lstrip()
    (kept,) = llm.generate("Hello", SamplingParams(bad_words=[word], **fields))
    assert word in free.outputs[0].text
    assert word not in kept.outputs[0].text
    until = free.outputs[0].text.index(word)
    assert kept.outputs[0].text[:until] == free.outputs[0].text[:until]


def _spelt(llm: LLM, pair: tuple[int, ...]) -> bool:
    text = llm.get_tokenizer().decode(pair)
    return text.isascii() and text.isprintable() and " " not in text


def test_only_allowed_tokens_come(llm: LLM) -> None:
    params = SamplingParams(allowed_token_ids=[65, 66, 67], max_tokens=20, seed=1)
    (output,) = llm.generate("Hello", params)
    assert set(output.outputs[0].token_ids) == {65, 66, 67}


def test_a_bias_forces_a_token(llm: LLM) -> None:
    params = SamplingParams(logit_bias={77: 100.0}, temperature=0, max_tokens=3)
    assert llm.generate("Hello", params)[0].outputs[0].token_ids == [77, 77, 77]


@pytest.mark.parametrize("field", ["allowed_token_ids", "logprob_token_ids", "stop_token_ids"])
def test_ids_out_of_the_vocabulary_name_the_prompt(llm: LLM, field: str) -> None:
    params: Any = [SamplingParams(), SamplingParams(**{field: [3, 258]})]
    with pytest.raises(SamplingParamsError, match=rf"prompt 1: {field}=\[258\] .* 0 to 257"):
        llm.generate(["a", "b"], params)
    with pytest.raises(SamplingParamsError, match=r"logit_bias=\[900\]"):
        llm.generate("a", SamplingParams(logit_bias={900: 1.0}))


def test_a_bad_word_without_tokens_is_refused(llm: LLM) -> None:
    with pytest.raises(SamplingParamsError, match=r"bad_words='  ' .*at least one token"):
        llm.generate("a", SamplingParams(bad_words=["  "]))


def test_the_prompt_is_scored_beside_others(llm: LLM) -> None:
    ids = [BOS, *(number * 7 % 250 for number in range(600 - 20))]  # longer than a step
    params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=1)
    plain = SamplingParams(temperature=0, max_tokens=2)
    scored, other = llm.generate([ids, ids[:30]], [params, plain])
    logits = llm.logits(ids).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert scored.prompt_logprobs is not None
    assert scored.prompt_logprobs[0] is None
    for row, token, scores in zip(expected, ids[1:], scored.prompt_logprobs[1:], strict=False):
        assert scores is not None
        assert scores[token].logprob == pytest.approx(row[token], abs=1e-3)
        assert scores[token].decoded_token == llm.get_tokenizer().decode([token], False)
    assert other.prompt_logprobs is None
    assert [o.outputs[0] for o in llm.generate([ids, ids[:30]], plain)] == [
        scored.outputs[0],
        other.outputs[0],
    ], "scoring changes nothing"


def test_a_function_that_fails_fails_its_own_request_only(
    llm: LLM, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(ids: list[int], row: Any) -> Any:
        if len(ids) == 3:
            raise ZeroDivisionError("by design")
        return row

    good = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    bad = SamplingParams(temperature=0, max_tokens=8, logits_processors=[raises])
    shapeless = SamplingParams(logits_processors=[lambda ids, row: row[:5]])
    (expected,) = llm.generate("Hello", good)
    outputs = llm.generate(["Hello", "Hello", "Hello"], [bad, good, shapeless])
    assert [o.outputs[0].finish_reason for o in outputs] == ["error", "length", "error"]
    assert outputs[1].outputs == expected.outputs
    assert outputs[0].outputs[0].token_ids == expected.outputs[0].token_ids[:3]
    assert "by design" in str(outputs[0].error)
    assert r"returned the shape [5]" in str(outputs[2].error)
    assert "a request failed: logits_processors[0] (raises)" in caplog.text
    with pytest.raises(RequestError, match="by design"):
        llm.generate("Hello", bad)
    with pytest.raises(RequestError, match="by design"):
        list(llm.stream("Hello", bad))


def test_a_function_may_steer(llm: LLM) -> None:
    def counts_up(prompt: list[int], ids: list[int], row: Any) -> Any:
        row[:] = -np.inf
        row[len(prompt) + len(ids)] = 0.0
        return row

    params = SamplingParams(logits_processors=[counts_up], max_tokens=4)
    assert llm.generate([BOS] * 9, params)[0].outputs[0].token_ids == [9, 10, 11, 12]
