"""Log probabilities and ranks equal those of torch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from enginewright.runtime.sampling import logprobs

torch = pytest.importorskip("torch")

Logits = NDArray[np.float32]
SIZES = st.integers(2, 300)
VALUES = st.floats(-30, 30, width=32)
LOGITS = hnp.arrays(np.float32, SIZES, elements=VALUES)
IDS = st.lists(st.integers(0, 299), min_size=1, max_size=40)


@given(LOGITS)
def test_log_normaliser(logits: Logits) -> None:
    expected = torch.from_numpy(logits.astype(np.float64)).logsumexp(0).item()
    assert logprobs.log_normaliser(logits) == pytest.approx(expected, abs=1e-5)


def rank(logits: Logits, token: int) -> int:
    return sum(1 for other in logits.tolist() if other >= logits[token])


@given(LOGITS, st.integers(0, 299), st.integers(-1, 320))
def test_likeliest(logits: Logits, token: int, count: int) -> None:
    token %= logits.size
    expected = torch.from_numpy(logits.astype(np.float64)).log_softmax(0)
    scores = logprobs.likeliest(logits, token, count)
    best = sorted(range(logits.size), key=lambda at: (-logits[at], at))
    best = best if count == -1 else best[:count]
    assert list(scores) == [token, *(other for other in best if other != token)]
    for position, other in enumerate(best, 1):
        if other != token:
            assert scores[other][1] == position
    assert scores[token][1] == rank(logits, token)
    for other, (logprob, _) in scores.items():
        assert logprob == pytest.approx(expected[other].item(), abs=1e-5)


@given(LOGITS, st.integers(0, 299), IDS)
def test_named_tokens_have_their_true_ranks(logits: Logits, token: int, ids: list[int]) -> None:
    token %= logits.size
    used = list(dict.fromkeys(each % logits.size for each in ids))
    expected = torch.from_numpy(logits.astype(np.float64)).log_softmax(0)
    scores = logprobs.named(logits, token, np.array(used))
    assert list(scores) == [token, *(each for each in used if each != token)]
    for each, (logprob, found) in scores.items():
        assert found == rank(logits, each)
        assert logprob == pytest.approx(expected[each].item(), abs=1e-5)


def test_a_matrix_of_the_prompt() -> None:
    rows = np.random.default_rng(1).normal(0, 3, (4, 50)).astype(np.float32)
    expected = torch.from_numpy(rows).log_softmax(1)[:, [3, 9]]
    found = logprobs.token_matrix(rows, np.array([3, 9]))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert found.dtype == np.float32


def test_logits_that_are_no_numbers_give_none() -> None:
    """The engine's fault is told when the next token is chosen."""
    broken = np.array([1.0, np.nan, np.inf], np.float32)
    assert np.isnan(logprobs.log_normaliser(broken))
