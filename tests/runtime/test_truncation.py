"""Truncations keep what those of transformers keep, without sorting the vocabulary."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from enginewright.runtime.sampling import truncation

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


def from_transformers(warper: Any, logits: Logits) -> Logits:
    result = warper(torch.zeros((1, 1), dtype=torch.int64), torch.from_numpy(logits)[None])
    return np.asarray(result[0].numpy(), np.float32)


def kept_by_transformers(warper: Any, logits: Logits) -> list[int]:
    return np.flatnonzero(from_transformers(warper, logits) > -np.inf).tolist()


@given(LOGITS, st.integers(1, 320))
def test_top_k(logits: Logits, k: int) -> None:
    """Also with ties, which are all kept."""
    theirs = kept_by_transformers(warpers.TopKLogitsWarper(k), logits)
    assert truncation.keep_top_k(logits, k).tolist() == theirs


def test_top_k_of_nothing_keeps_all() -> None:
    assert truncation.keep_top_k(np.zeros(3, np.float32), 0).tolist() == [0, 1, 2]


@given(DISTINCT, st.floats(0.001, 0.999))
def test_min_p(logits: Logits, min_p: float) -> None:
    ours = set(truncation.keep_min_p(logits, min_p).tolist())
    theirs = set(kept_by_transformers(warpers.MinPLogitsWarper(min_p), logits))
    threshold = float(logits.max()) + math.log(min_p)
    for token in ours ^ theirs:  # only where float32 cannot tell
        assert abs(float(logits[token]) - threshold) < 1e-4


@given(DISTINCT, st.floats(0.01, 0.999))
def test_top_p(logits: Logits, top_p: float) -> None:
    ours = set(truncation.keep_top_p(logits, top_p).tolist())
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
    kept = truncation.keep_top_p(logits, top_p)
    assert abs(kept.size - needed) <= 1
    assert set(kept.tolist()) >= set(order[: needed - 1].tolist())


def test_truncations_always_keep_the_best() -> None:
    logits = np.array([0.0, 50.0, -np.inf, 1.0], np.float32)
    assert truncation.keep_top_p(logits, 1e-9).tolist() == [1]
    assert truncation.keep_min_p(logits, 1.0).tolist() == [1]
    assert truncation.keep_top_k(logits, 1).tolist() == [1]


@given(DISTINCT, st.integers(1, 50), st.floats(0.01, 0.5))
def test_min_p_and_top_k_may_change_places(logits: Logits, k: int, min_p: float) -> None:
    first = truncation.keep_top_k(logits, k)
    one = first[truncation.keep_min_p(logits[first], min_p)]
    second = truncation.keep_min_p(logits, min_p)
    other = second[truncation.keep_top_k(logits[second], k)]
    assert one.tolist() == other.tolist()


@given(LOGITS, st.integers(1, 320))
def test_highest_are_in_order_and_ties_go_by_position(logits: Logits, count: int) -> None:
    expected = sorted(range(logits.size), key=lambda at: (-logits[at], at))[:count]
    assert truncation.highest(logits, count).tolist() == expected


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 600), st.integers(1, 40))
def test_the_highest_of_a_large_vocabulary(seed: int, count: int, levels: int) -> None:
    """Where few groups are looked at; with many ties, and with tokens that cannot be chosen."""
    random = np.random.default_rng(seed)
    logits = random.integers(0, levels * 100, 30_011).astype(np.float32)
    logits[random.random(30_011) < 0.5] = -np.inf
    order = np.argsort(-logits, kind="stable")[:count]
    assert truncation.highest(logits, count).tolist() == order.tolist()
    kept = truncation.keep_top_k(logits, count)
    assert kept.tolist() == np.flatnonzero(logits >= logits[order[-1]]).tolist()


def test_top_p_of_a_flat_vocabulary_keeps_the_first_ones() -> None:
    kept = truncation.keep_top_p(np.zeros(10_000, np.float32), 0.25)
    assert kept.tolist() == list(range(2500))


def test_top_p_beyond_what_float32_can_weigh() -> None:
    """One token has all the weight but for a few others; most are as good as impossible."""
    logits = np.full(5000, -np.inf, np.float32)
    logits[100:2100] = -9.0
    logits[7] = 0.0
    share = 1 / (1 + 2000 * np.exp(-9.0))
    kept = truncation.keep_top_p(logits, share + (1 - share) * 0.5)
    assert kept[0] == 7
    assert abs(kept.size - 1001) <= 1
    assert set(kept[1:].tolist()) == set(range(100, 100 + kept.size - 1))
