"""Processors equal their counterparts in transformers and vLLM's formulas."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from enginewright.runtime.sampling import processors

torch = pytest.importorskip("torch")
warpers = pytest.importorskip("transformers.generation.logits_process")

Logits = NDArray[np.float32]
SIZES = st.integers(2, 300)
VALUES = st.floats(-30, 30, width=32)
LOGITS = hnp.arrays(np.float32, SIZES, elements=VALUES)
DISTINCT = SIZES.flatmap(
    lambda size: st.integers(0, 2**32 - 1).map(
        lambda seed: (
            np.random.default_rng(seed).permutation(size).astype(np.float32) * np.float32(20 / size)
        )
    )
)
IDS = st.lists(st.integers(0, 299), min_size=1, max_size=40)


def from_transformers(warper: Any, logits: Logits, ids: NDArray[np.int64] | None = None) -> Logits:
    ids = np.zeros(1, np.int64) if ids is None else ids
    result = warper(torch.from_numpy(ids)[None], torch.from_numpy(logits)[None])
    return np.asarray(result[0].numpy(), np.float32)


def kept_by_transformers(warper: Any, logits: Logits) -> list[int]:
    return np.flatnonzero(from_transformers(warper, logits) > -np.inf).tolist()


@given(LOGITS, IDS, st.floats(0.1, 3.0))
def test_repetition_penalty(logits: Logits, ids: list[int], penalty: float) -> None:
    used = np.array(ids) % logits.size
    before = logits.copy()
    ours = processors.repetition_penalty(logits, np.unique(used), penalty)
    theirs = from_transformers(warpers.RepetitionPenaltyLogitsProcessor(penalty), logits, used)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    np.testing.assert_array_equal(logits, before)


@given(LOGITS, IDS, st.floats(-2, 2), st.floats(-2, 2))
def test_output_penalties(
    logits: Logits, ids: list[int], frequency: float, presence: float
) -> None:
    used = np.array(ids) % logits.size
    before = logits.copy()
    ours = processors.output_penalties(logits, used, frequency, presence)
    expected = logits.astype(np.float64)
    for token, count in Counter(used.tolist()).items():
        expected[token] -= frequency * count + presence
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    np.testing.assert_array_equal(logits, before)


def test_mask_is_that_of_min_new_tokens() -> None:
    logits = np.arange(6, dtype=np.float32)
    warper = warpers.MinNewTokensLengthLogitsProcessor(1, 3, [2, 5], device="cpu")
    ours = processors.mask_tokens(logits, np.array([2, 5]))
    np.testing.assert_array_equal(ours, from_transformers(warper, logits))
    assert logits[5] == 5.0


@given(LOGITS, st.floats(0.01, 2.0))
def test_temperature(logits: Logits, temperature: float) -> None:
    theirs = from_transformers(warpers.TemperatureLogitsWarper(temperature), logits)
    np.testing.assert_allclose(processors.scale_temperature(logits, temperature), theirs, rtol=1e-6)


def test_temperature_one_copies_nothing() -> None:
    logits = np.ones(4, np.float32)
    assert processors.scale_temperature(logits, 1.0) is logits


@given(LOGITS, st.integers(1, 320))
def test_top_k(logits: Logits, k: int) -> None:
    """Also with ties, which are all kept."""
    theirs = kept_by_transformers(warpers.TopKLogitsWarper(k), logits)
    assert processors.keep_top_k(logits, k).tolist() == theirs


def test_top_k_of_nothing_keeps_all() -> None:
    assert processors.keep_top_k(np.zeros(3, np.float32), 0).tolist() == [0, 1, 2]


@given(DISTINCT, st.floats(0.001, 0.999))
def test_min_p(logits: Logits, min_p: float) -> None:
    ours = set(processors.keep_min_p(logits, min_p).tolist())
    theirs = set(kept_by_transformers(warpers.MinPLogitsWarper(min_p), logits))
    threshold = float(logits.max()) + math.log(min_p)
    for token in ours ^ theirs:  # only where float32 cannot tell
        assert abs(float(logits[token]) - threshold) < 1e-4


@given(DISTINCT, st.floats(0.01, 0.999))
def test_top_p(logits: Logits, top_p: float) -> None:
    ours = set(processors.keep_top_p(logits, top_p).tolist())
    theirs = set(kept_by_transformers(warpers.TopPLogitsWarper(top_p), logits))
    weights = np.exp(logits.astype(np.float64))
    for token in ours ^ theirs:  # only where float32 cannot tell
        before = weights[logits > logits[token]].sum() / weights.sum()
        assert abs(before - top_p) < 1e-5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.9999), st.floats(0.0, 8.0))
def test_top_p_of_a_large_vocabulary_equals_a_full_sort(
    seed: int, top_p: float, spread: float
) -> None:
    """Flat rows need more than the first candidates, peaked ones few."""
    logits = np.random.default_rng(seed).normal(0, spread, 20_000).astype(np.float32)
    weights = np.exp(logits - logits.max())
    order = np.argsort(-logits, kind="stable")
    sums = np.cumsum(weights[order], dtype=np.float64)
    goal = top_p * float(weights.sum(dtype=np.float64))
    needed = int(np.count_nonzero(sums[:-1] < goal)) + 1
    kept = processors.keep_top_p(logits, top_p)
    assert abs(kept.size - needed) <= 1
    assert set(kept.tolist()) >= set(order[: needed - 1].tolist())


def test_truncations_always_keep_the_best() -> None:
    logits = np.array([0.0, 50.0, -np.inf, 1.0], np.float32)
    assert processors.keep_top_p(logits, 1e-9).tolist() == [1]
    assert processors.keep_min_p(logits, 1.0).tolist() == [1]
    assert processors.keep_top_k(logits, 1).tolist() == [1]


@given(DISTINCT, st.integers(1, 50), st.floats(0.01, 0.5))
def test_min_p_and_top_k_may_change_places(logits: Logits, k: int, min_p: float) -> None:
    first = processors.keep_top_k(logits, k)
    one = first[processors.keep_min_p(logits[first], min_p)]
    second = processors.keep_min_p(logits, min_p)
    other = second[processors.keep_top_k(logits[second], k)]
    assert one.tolist() == other.tolist()


@given(LOGITS)
def test_log_normaliser(logits: Logits) -> None:
    expected = torch.from_numpy(logits.astype(np.float64)).logsumexp(0).item()
    assert processors.log_normaliser(logits) == pytest.approx(expected, abs=1e-5)


@given(LOGITS, st.integers(1, 320))
def test_highest_are_in_order_and_ties_go_by_position(logits: Logits, count: int) -> None:
    expected = sorted(range(logits.size), key=lambda at: (-logits[at], at))[:count]
    assert processors.highest(logits, count).tolist() == expected
