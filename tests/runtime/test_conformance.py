"""The measures of an engine against reference values, and what they take of memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.runtime import LLM
from enginewright.runtime.conformance import Reference, measure

VOCAB = 258
PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def llm(tiny_artifact: Path) -> Iterator[LLM]:
    with LLM(tiny_artifact, threads=1, generation_config="vllm") as llm:
        yield llm


def log_probabilities(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def windows(count: int, length: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(length).integers(0, 250, (count, length)).astype(np.int32)


def reference(text: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any], tiny_model: Any) -> Any:
    """What a model answers that gives the log probabilities ``theirs`` to the text."""
    ranked = np.argsort(-theirs, axis=1).astype(np.int32)
    labels = text[:, 1:].reshape(-1, 1)
    return Reference(
        prompt_ids=np.array([PROMPT], np.int32),
        greedy_ids=np.array([tiny_model.continue_greedily(PROMPT, 4)], np.int32),
        greedy_margins=np.ones((1, 4), np.float32),
        text_ids=text,
        top_ids=ranked,
        top_logprobs=np.take_along_axis(theirs, ranked, axis=1).astype(np.float32),
        label_logprobs=np.take_along_axis(theirs, labels, axis=1)[:, 0].astype(np.float32),
    )


def test_measures_are_those_of_all_positions_at_once(llm: LLM, tiny_model: Any) -> None:
    text = windows(2, 40)
    logits = np.concatenate([tiny_model.logits(ids)[:-1] for ids in text])
    noise = np.random.default_rng(0).normal(scale=0.5, size=logits.shape)
    ours, theirs = log_probabilities(logits), log_probabilities(logits + noise)
    found = measure(llm, reference(text, theirs, tiny_model))
    kl = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
    assert found.mean_kl == pytest.approx(kl.mean(), rel=1e-3)
    assert found.max_kl == pytest.approx(kl.max(), rel=1e-3)
    labels = text[:, 1:].reshape(-1)
    rows = np.arange(len(labels))
    assert found.perplexity == pytest.approx(np.exp(-ours[rows, labels].mean()), rel=1e-4)
    assert found.reference_perplexity == pytest.approx(
        np.exp(-theirs[rows, labels].mean()), rel=1e-4
    )
    best, wanted = (np.argsort(-values, axis=1)[:, :5] for values in (ours, theirs))
    assert 0 < found.top1_agreement == np.mean(best[:, 0] == wanted[:, 0]) < 1
    shared = [len(set(a) & set(b)) / 5 for a, b in zip(best, wanted, strict=True)]
    assert found.topk_agreement == pytest.approx(np.mean(shared))
    assert found.greedy_agreement == 1
    assert found.prefill_invariant
    assert found.chunk_difference < 1e-4


def test_no_more_than_two_windows_of_logits_are_alive(llm: LLM, tiny_model: Any) -> None:
    text = windows(3, 512)
    one = np.concatenate([tiny_model.logits(text[0])[:-1]] * 3)
    wanted = reference(text, log_probabilities(one), tiny_model)
    llm.logits(text[0].tolist())  # the cache has its size from here on
    tracemalloc.start()
    try:
        measure(llm, wanted)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * text.shape[1] * VOCAB * 4
