"""``algorithm="vllm"`` finds what vLLM's rules find, written down here as plainly as can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from enginewright.runtime.beam_search.hypotheses import Hypothesis
from enginewright.runtime.beam_search.params import BeamSearchParams
from enginewright.runtime.beam_search.search import BeamSearch

Model = Callable[[Sequence[int]], NDArray[np.float32]]
PENALTIES = [-1.5, -1.0, 0.0, 0.5, 1.0, 2.0]


def table_model(seed: int, vocab: int, spread: float, likely: Sequence[int]) -> Model:
    """Logits that are a function of all tokens generated so far."""
    rows = np.random.default_rng(seed).normal(0, spread, (499, vocab)).astype(np.float32)
    rows[:, list(likely)] += spread

    def logits(tokens: Sequence[int]) -> NDArray[np.float32]:
        state = 0
        for token in tokens:
            state = (state * 31 + token + 7) % 1_000_003
        return np.asarray(rows[state % len(rows)])

    return logits


def drive(model: Model, params: BeamSearchParams, eos: Sequence[int], **given: Any) -> BeamSearch:
    """Run a search to its end."""
    vocab = len(model([]))
    search = BeamSearch(
        params, vocab_size=vocab, eos_token_ids=eos, room=given.pop("room", 1000), **given
    )
    beams: list[list[int]] = [[]]
    while beams:
        branches = search.step([model(beam) for beam in beams])
        beams = [[*beams[parent], token] for parent, token in branches]
    return search


@dataclass
class Beam:
    tokens: list[int]
    total: float
    penalty: float

    @property
    def score(self) -> float:
        return float(self.total / max(len(self.tokens), 1) ** self.penalty)


def by_the_book(model: Model, params: BeamSearchParams, eos: Sequence[int]) -> list[Beam]:
    """All candidates of all beams, sorted; all that ended, kept; no end before max_tokens."""
    live, completed = [Beam([], 0.0, params.length_penalty)], []
    for _ in range(params.max_tokens):
        grown = []
        for beam in live:
            logits = model(beam.tokens).astype(np.float64)
            logprobs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            best = np.argsort(-logprobs, kind="stable")[: 2 * params.beam_width].tolist()
            if params.allowed_token_ids is not None:
                best = list(params.allowed_token_ids)
            for token in best:
                total = beam.total + float(logprobs[token])
                new = Beam([*beam.tokens, token], total, params.length_penalty)
                ends = token in params.stop_ids or (token in eos and not params.ignore_eos)
                (completed if ends else grown).append(new)
        live = sorted(grown, key=lambda each: -each.score)[: params.beam_width]
    return sorted([*completed, *live], key=lambda each: -each.score)[: params.beam_width]


def check(found: Sequence[Hypothesis], expected: Sequence[Beam]) -> None:
    assert [each.token_ids for each in found] == [each.tokens for each in expected]
    assert [each.score for each in found] == pytest.approx(
        [each.score for each in expected], rel=1e-5, abs=1e-5
    )
    assert [each.cumulative_logprob for each in found] == pytest.approx(
        [each.total for each in expected], rel=1e-5, abs=1e-5
    )


def some_search(seed: int) -> tuple[Model, BeamSearchParams, list[int]]:
    """Any model, parameters and ends; all as likely, which strategies' are not."""
    random = np.random.default_rng(seed)
    vocab = int(random.integers(3, 40))
    eos = random.choice(vocab, random.integers(0, 4), replace=False).tolist()
    model = table_model(seed, vocab, random.choice([0.3, 1.0, 3.0]), eos)
    allowed = random.choice(vocab, random.integers(1, vocab), replace=False).tolist()
    params = BeamSearchParams(
        int(random.integers(1, 9)),
        int(random.integers(1, 13)),
        length_penalty=float(random.choice(PENALTIES)),
        ignore_eos=bool(random.random() < 0.2),
        stop_token_ids=random.choice(vocab, random.integers(0, 3)).tolist(),
        allowed_token_ids=allowed if random.random() < 0.3 else None,
    )
    return model, params, eos


# Sums in float32 and float64 may order near equals differently: always the same examples.
@settings(max_examples=300, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_any_search(seed: int) -> None:
    model, params, eos = some_search(seed)
    check(drive(model, params, eos).hypotheses(), by_the_book(model, params, eos))


def test_all_allowed_tokens_are_candidates() -> None:
    """Not the 2 * beam_width likeliest alone: an unlikely end may yet be the best."""
    logits = np.log(np.array([*[0.12] * 7, 0.1, 0.06], np.float32))
    params = BeamSearchParams(2, 9, length_penalty=0.0, allowed_token_ids=range(8))
    found = drive(lambda _: logits, params, [7]).hypotheses()
    assert found[0].token_ids == [7]


@pytest.mark.parametrize("length_penalty", PENALTIES)
def test_it_ends_once_nothing_better_can_come(length_penalty: float) -> None:
    """The result is that of a search to max_tokens, in fewer steps."""
    steps = 0

    def counted(tokens: Sequence[int]) -> NDArray[np.float32]:
        nonlocal steps
        steps = max(steps, len(tokens) + 1)
        return model(tokens)

    model = table_model(3, 20, 1.0, [4, 5])
    params = BeamSearchParams(3, 60, length_penalty=length_penalty)
    found = drive(counted, params, [4, 5]).hypotheses()
    assert steps < 60 or length_penalty > 0
    check(found, by_the_book(model, params, [4, 5]))
    assert all(each.ending.reason == "stop" for each in found) or length_penalty > 0


def test_the_two_algorithms_differ_where_ends_are_unlikely() -> None:
    """An end outside of the best ``beam_width`` counts for vLLM, not for Hugging Face."""
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    found = {}
    for algorithm in ("vllm", "hf"):
        params = BeamSearchParams(2, 1, algorithm=algorithm)
        found[algorithm] = [
            each.token_ids for each in drive(lambda _: logits, params, [3]).hypotheses()
        ]
    assert found["vllm"] == found["hf"] == [[0], [1]]
    for algorithm in ("vllm", "hf"):
        params = BeamSearchParams(2, 3, algorithm=algorithm, length_penalty=0.0)
        best = drive(lambda _: logits, params, [2]).hypotheses()
        found[algorithm] = [each.token_ids for each in best]
    assert found["vllm"][0] == [2]
    assert [2] not in found["hf"]
