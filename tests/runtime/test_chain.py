"""All processors of a request together: their order, and callables that go wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from enginewright.runtime.errors import EnginewrightError, RequestError, SamplingParamsError
from enginewright.runtime.sampling.bad_words import Words
from enginewright.runtime.sampling.chain import ORDERS, Chain
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.sampler import Sampler
from enginewright.runtime.sampling.truncation import truncate

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers.generation.logits_process")

Logits = NDArray[np.float32]
V = 40
EOS = 7
WORDS: Words = ((3,), (1, 2), (2, 2, 5))
IDS = st.integers(0, V - 1)


@st.composite
def requests(draw: Any) -> tuple[SamplingParams, list[int], list[int], Logits]:
    """Parameters with some of everything, a prompt, an output so far, and logits."""
    seed = draw(st.integers(0, 2**32 - 1))
    logits = np.random.default_rng(seed).permutation(V).astype(np.float32) / 4 - 4
    fields: dict[str, Any] = {
        "repetition_penalty": draw(st.sampled_from([1.0, 0.7, 1.3])),
        "min_tokens": draw(st.integers(0, 4)),
        "stop_token_ids": draw(st.sampled_from([(), (9, 11)])),
        "logit_bias": draw(st.none() | st.dictionaries(IDS, st.floats(-4, 4, width=32))),
        "temperature": draw(st.sampled_from([1.0, 0.5, 1.7])),
        "top_k": draw(st.sampled_from([0, 1, 5, 20])),
        "top_p": draw(st.sampled_from([1.0, 0.5, 0.9])),
        "min_p": draw(st.sampled_from([0.0, 0.05, 0.4])),
    }
    allowed = draw(st.none() | st.lists(IDS, min_size=5, unique=True))
    if allowed is not None:
        fields["allowed_token_ids"] = [*allowed, 30, 31]  # never barred
    prompt = draw(st.lists(IDS, min_size=1, max_size=8))
    output = draw(st.lists(IDS, max_size=6))
    return SamplingParams(**fields), prompt, output, logits


def probabilities(
    params: SamplingParams, prompt: Sequence[int], output: Sequence[int], logits: Logits
) -> NDArray[np.float64]:
    """What our processors and truncations leave, as a distribution over the vocabulary."""
    chain = Chain(params, V, [EOS], prompt, WORDS)
    candidates, survivors = truncate(chain(logits, output), params)
    candidates = np.arange(V) if candidates is None else candidates
    weights = np.exp(survivors.astype(np.float64) - survivors.max())
    result = np.zeros(V)
    result[candidates] = weights / weights.sum()
    return result


def hf_processors(params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> Any:
    """The list that transformers' generate would make, in its order."""
    chain = hf.LogitsProcessorList()
    if params.logit_bias:
        chain.append(
            hf.SequenceBiasLogitsProcessor({(t,): float(b) for t, b in params.logit_bias.items()})
        )
    if params.repetition_penalty != 1.0:
        chain.append(hf.RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    chain.append(hf.NoBadWordsLogitsProcessor([list(word) for word in WORDS], eos_token_id=None))
    ends = [EOS, *params.stop_ids]
    chain.append(
        hf.MinNewTokensLengthLogitsProcessor(len(prompt), params.min_tokens, ends, device="cpu")
    )
    if params.allowed_token_ids is not None:
        allowed = list(params.allowed_token_ids)
        chain.append(hf.PrefixConstrainedLogitsProcessor(lambda batch, sent: allowed, 1))
    if params.temperature != 1.0:
        chain.append(hf.TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        chain.append(hf.TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        chain.append(hf.TopPLogitsWarper(params.top_p))
    if params.min_p > 0.0:
        chain.append(hf.MinPLogitsWarper(params.min_p))
    return chain


@given(requests())
def test_hfs_order_gives_hfs_distribution(
    request_: tuple[SamplingParams, list[int], list[int], Logits],
) -> None:
    params, prompt, output, logits = request_
    params = _replaced(params, processor_order="hf")
    chain = hf_processors(params, prompt, output)
    theirs = chain(torch.tensor([[*prompt, *output]]), torch.from_numpy(logits.copy())[None])
    expected = theirs[0].double().softmax(0).numpy()
    _compare(probabilities(params, prompt, output, logits), expected)


@given(requests(), st.floats(-2, 2), st.floats(-2, 2))
def test_vllms_order_gives_vllms_distribution(
    request_: tuple[SamplingParams, list[int], list[int], Logits],
    frequency: float,
    presence: float,
) -> None:
    params, prompt, output, logits = request_
    params = _replaced(params, frequency_penalty=frequency, presence_penalty=presence)
    expected = vllm_distribution(params, prompt, output, logits)
    _compare(probabilities(params, prompt, output, logits), expected)


def vllm_distribution(
    params: SamplingParams, prompt: Sequence[int], output: Sequence[int], logits: Logits
) -> NDArray[np.float64]:
    """vLLM's sampler as its documentation describes it, one token at a time, in float64."""
    row = [float(value) for value in logits]
    for token in range(V):
        if params.allowed_token_ids is not None and token not in params.allowed_token_ids:
            row[token] = -math.inf
    for word in WORDS:
        prefix = list(word[:-1])
        if not prefix or list(output[-len(prefix) :]) == prefix:
            row[word[-1]] = -math.inf
    if len(output) < params.min_tokens:
        for token in (EOS, *params.stop_ids):
            row[token] = -math.inf
    for token, bias in (params.logit_bias or {}).items():
        row[token] += bias
    for token in {*prompt, *output}:
        factor = params.repetition_penalty
        row[token] = row[token] / factor if row[token] > 0 else row[token] * factor
    for token in set(output):
        row[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    scaled = np.array(row) / params.temperature
    scaled[scaled < scaled.max() + math.log(max(params.min_p, 1e-300))] = -math.inf
    if params.top_k:
        scaled[scaled < np.sort(scaled)[-params.top_k]] = -math.inf
    weights = np.exp(scaled - scaled.max())
    weights /= weights.sum()
    order = np.argsort(-weights, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    weights[order[before >= params.top_p]] = 0.0
    return np.asarray(weights / weights.sum())


def _compare(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> None:
    """Equal, but for a token on the border of a truncation that float32 cannot place."""
    differing = np.flatnonzero((ours > 0) != (theirs > 0))
    if not differing.size:
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
        return
    both = (ours > 0) & (theirs > 0)
    assert differing.size <= 2
    kept = np.maximum(ours, theirs)
    assert kept[differing].max() <= kept[both].min() * (1 + 1e-4)


def _replaced(params: SamplingParams, **changes: Any) -> SamplingParams:
    import dataclasses

    return dataclasses.replace(params, **changes)


def test_the_orders_differ_where_they_say() -> None:
    """A biased token that was seen: vLLM penalises the sum, Hugging Face's order the logit."""
    logits = np.array([2.0, 0.0], np.float32)
    fields: dict[str, Any] = {"logit_bias": {0: 1.0}, "presence_penalty": 0.5}
    bad = {"allowed_token_ids": [0], "logits_processors": [lambda ids, row: row + 10]}
    for order in ORDERS:
        params = SamplingParams(**fields, **bad, processor_order=order)  # type: ignore[arg-type]
        assert Chain(params, 2, (), [1])(logits, [0]).tolist() == [12.5, -np.inf]

    def halved(ids: list[int], row: Logits) -> Logits:
        return row / 2

    found = {}
    for order in ORDERS:
        params = SamplingParams(
            repetition_penalty=2.0,
            presence_penalty=1.0,
            logits_processors=[halved],
            processor_order=order,  # type: ignore[arg-type]
        )
        found[order] = Chain(params, 2, (), [1])(np.array([8.0, 0.0], np.float32), [0])[0]
    assert found == {"vllm": 8.0 / 2 / 2 - 1, "hf": (8.0 / 2 - 1) / 2}


def test_the_published_order_is_the_one_that_runs() -> None:
    page = Path(__file__).parents[2] / "docs" / "sampling.md"
    text = page.read_text("utf-8")
    for name, order in ORDERS.items():
        section = text.partition(f'`processor_order="{name}"`')[2].partition("\n\n")[2]
        lines = section.partition("\n\n")[0].splitlines()
        assert [line.partition(". ")[2].partition(":")[0] for line in lines] == list(order), name


def test_a_row_without_wishes_is_not_copied() -> None:
    logits = np.zeros(4, np.float32)
    assert Chain(SamplingParams(), 4, (1,), [0])(logits, [1, 2]) is logits
    after = SamplingParams(min_tokens=2)
    assert Chain(after, 4, (1,), [0])(logits, [1, 2]) is logits
    first = SamplingParams(presence_penalty=1.0)
    assert Chain(first, 4, (1,), [0])(logits, []) is logits


def test_the_engines_row_is_never_written_to() -> None:
    logits = np.arange(V, dtype=np.float32)
    logits.setflags(write=False)

    def greedy_for_memory(ids: list[int], row: Logits) -> Logits:
        row[:] = 0
        return row

    params = SamplingParams(
        allowed_token_ids=[1, 2],
        logit_bias={1: 2.0},
        repetition_penalty=1.1,
        logits_processors=[greedy_for_memory],
        logprobs=1,
        seed=1,
    )
    sampled = Sampler(params, V, [EOS], [1]).sample(logits, [2])
    assert sampled.top is not None
    assert sampled.top[V - 1][1] == 1, "log probabilities are of the raw logits"


def test_bad_words_begin_in_the_prompt_only_for_hf() -> None:
    logits = np.zeros(V, np.float32)
    for order, banned in (("vllm", False), ("hf", True)):
        params = SamplingParams(bad_words=["x"], processor_order=order)  # type: ignore[arg-type]
        row = Chain(params, V, (), [4, 1], ((1, 2),))(logits, [])
        assert (row[2] == -np.inf) == banned
        assert Chain(params, V, (), [4], ((1, 2),))(logits, [1])[2] == -np.inf


def test_words_of_tokens_that_the_model_lacks_cannot_be_completed() -> None:
    params = SamplingParams(bad_words=["x"])
    assert np.isfinite(Chain(params, V, (), [4], ((V + 5,), (V, 2)))(np.zeros(V), [1])).all()


def test_callables_see_what_was_generated_or_the_prompt_too() -> None:
    seen: list[Any] = []

    def two(ids: list[int], row: Logits) -> Logits:
        seen.append(ids)
        return row

    def three(prompt: list[int], ids: list[int], row: Logits) -> Any:
        seen.append((prompt, ids))
        return torch.from_numpy(row) + 1.0

    params = SamplingParams(logits_processors=[two, three])
    row = Chain(params, 3, (), [1, 2])(np.zeros(3, np.float32), [0])
    assert seen == [[0], ([1, 2], [0])]
    assert row.tolist() == [1.0, 1.0, 1.0]
    assert row.dtype == np.float32


def raising(ids: list[int], row: Logits) -> Logits:
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (raising, r"logits_processors\[0\] \(raising\) failed: KeyError: 'no such thing'"),
        (lambda ids, row: row[:-1], r"returned the shape \[39\]: .* \[40\]"),
        (lambda ids, row: row[None], r"returned the shape \[1, 40\]"),
        (lambda ids, row: None, r"(failed: TypeError|returned the shape)"),
        (lambda ids, row: row * np.nan, "returned NaN"),
        (lambda ids, row: "text", "failed: ValueError"),
        (lambda: None, "failed: TypeError"),
        (lambda ids, row: np.full_like(row, -np.inf), "no token can be chosen"),
        (lambda ids, row: np.full_like(row, np.inf), "returned infinity"),
    ],
)
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_callable_that_goes_wrong_is_an_error_of_the_request(
    function: Any, said: str, temperature: float
) -> None:
    params = SamplingParams(logits_processors=[function], temperature=temperature)
    with pytest.raises(RequestError, match=said):
        Sampler(params, V, [EOS], [1]).sample(np.zeros(V, np.float32), [])


def test_limits_that_leave_no_token_are_told_from_broken_logits() -> None:
    params = SamplingParams(allowed_token_ids=[2], bad_words=["x"], temperature=0)
    with pytest.raises(RequestError, match="allowed_token_ids, bad_words"):
        Sampler(params, V, [EOS], [1], bad_words=((2,),)).sample(np.zeros(V, np.float32), [])
    with pytest.raises(EnginewrightError, match="no usable logits"):
        Sampler(params, V, [EOS], [1]).sample(np.full(V, np.nan, np.float32), [])


def test_min_tokens_must_leave_an_allowed_token() -> None:
    params = SamplingParams(allowed_token_ids=[EOS, 9], stop_token_ids=[9], min_tokens=1)
    with pytest.raises(SamplingParamsError, match=r"min_tokens=1 leaves no token.*allowed"):
        Sampler(params, V, [EOS], [1])
