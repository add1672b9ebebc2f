"""Processors equal their counterparts in transformers and vLLM's formulas."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from enginewright.runtime.errors import SamplingParamsError
from enginewright.runtime.sampling import processors
from enginewright.runtime.sampling.bad_words import completing, tokenize_words
from enginewright.runtime.sampling.repetition import RepetitionDetectionParams, repeats
from enginewright.runtime.sampling.tally import Tally

torch = pytest.importorskip("torch")
warpers = pytest.importorskip("transformers.generation.logits_process")

Logits = NDArray[np.float32]
SIZES = st.integers(2, 300)
VALUES = st.floats(-30, 30, width=32)
LOGITS = hnp.arrays(np.float32, SIZES, elements=VALUES)
IDS = st.lists(st.integers(0, 299), min_size=1, max_size=40)


def from_transformers(warper: Any, logits: Logits, ids: NDArray[np.int64] | None = None) -> Logits:
    ids = np.zeros(1, np.int64) if ids is None else ids
    result = warper(torch.from_numpy(ids)[None], torch.from_numpy(logits)[None])
    return np.asarray(result[0].numpy(), np.float32)


@given(LOGITS, IDS, st.floats(0.1, 3.0))
def test_repetition_penalty(logits: Logits, ids: list[int], penalty: float) -> None:
    used = np.array(ids) % logits.size
    theirs = from_transformers(warpers.RepetitionPenaltyLogitsProcessor(penalty), logits, used)
    processors.repetition_penalty(logits, used, penalty)
    np.testing.assert_allclose(logits, theirs, rtol=1e-6)


@given(LOGITS, IDS, st.floats(-2, 2), st.floats(-2, 2))
def test_output_penalties(
    logits: Logits, ids: list[int], frequency: float, presence: float
) -> None:
    used = np.array(ids) % logits.size
    expected = logits.astype(np.float64)
    for token, count in Counter(used.tolist()).items():
        expected[token] -= frequency * count + presence
    processors.output_penalties(logits, *Tally().of(used.tolist()), frequency, presence)
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_mask_is_that_of_min_new_tokens() -> None:
    logits = np.arange(6, dtype=np.float32)
    warper = warpers.MinNewTokensLengthLogitsProcessor(1, 3, [2, 5], device="cpu")
    theirs = from_transformers(warper, logits)
    processors.mask_tokens(logits, np.array([2, 5]))
    np.testing.assert_array_equal(logits, theirs)


@given(LOGITS, st.floats(0.01, 2.0))
def test_temperature(logits: Logits, temperature: float) -> None:
    theirs = from_transformers(warpers.TemperatureLogitsWarper(temperature), logits)
    np.testing.assert_allclose(processors.scale_temperature(logits, temperature), theirs, rtol=1e-6)


def test_temperature_one_copies_nothing() -> None:
    logits = np.ones(4, np.float32)
    assert processors.scale_temperature(logits, 1.0) is logits


@given(LOGITS, IDS)
def test_keep_only_is_prefix_allowed_tokens(logits: Logits, ids: list[int]) -> None:
    allowed = [token % logits.size for token in ids]
    warper = warpers.PrefixConstrainedLogitsProcessor(lambda batch, sent: allowed, 1)
    theirs = from_transformers(warper, logits)
    processors.keep_only(logits, np.array(allowed))
    np.testing.assert_array_equal(logits, theirs)


@given(LOGITS, st.dictionaries(st.integers(0, 299), st.floats(-100, 100, width=32), min_size=1))
def test_bias_is_sequence_bias(logits: Logits, bias: dict[int, float]) -> None:
    bias = {token % logits.size: value for token, value in bias.items()}
    warper = warpers.SequenceBiasLogitsProcessor({(token,): bias[token] for token in bias})
    theirs = from_transformers(warper, logits)
    processors.add_bias(logits, np.array(list(bias)), np.array(list(bias.values()), np.float32))
    np.testing.assert_allclose(logits, theirs, rtol=1e-6)


WORDS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=5)


@given(WORDS, st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_words_are_banned_where_they_would_be_completed(
    words: list[list[int]], past: list[int]
) -> None:
    logits = np.zeros(5, np.float32)
    warper = warpers.NoBadWordsLogitsProcessor(words, eos_token_id=[4])
    theirs = from_transformers(warper, logits, np.array(past))
    banned = completing(tuple(map(tuple, words)), past)
    processors.mask_tokens(logits, np.array(banned, np.int64))
    np.testing.assert_array_equal(logits, theirs)


class LetterTokenizer:
    """A letter is a token; a letter after a space is another one; some longer pieces are one."""

    pieces: ClassVar[dict[str, int]] = {" bad": 500, "xy": 501}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        if text in self.pieces:
            return [self.pieces[text]]
        return [ord(letter) for letter in text if letter != "\N{ZERO WIDTH SPACE}"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a", ((97,), (32, 97))),
        ("  a", ((97,), (32, 97))),
        ("bad", ((98, 97, 100), (500,))),  # vLLM misses the second, whose length differs
        ("xy", ((501,), (32, 120, 121))),
    ],
)
def test_words_are_tokenized_with_and_without_a_space(
    word: str, expected: tuple[tuple[int, ...], ...]
) -> None:
    assert tokenize_words([word], LetterTokenizer()) == expected


@pytest.mark.parametrize("word", ["  ", "\N{ZERO WIDTH SPACE}"])
def test_a_word_without_a_token_is_refused(word: str) -> None:
    with pytest.raises(SamplingParamsError, match=r"bad_words=.* at least one token"):
        tokenize_words(["ok", word], LetterTokenizer())


def repeats_by_comparing(tokens: list[int], params: RepetitionDetectionParams) -> bool:
    """vLLM's rule, as its documentation states it."""
    for size in range(max(params.min_pattern_size, 1), params.max_pattern_size + 1):
        pattern = tokens[-size:]
        if len(tokens) >= size and tokens[-size * params.min_count :] == pattern * params.min_count:
            return True
    return False


@given(
    st.lists(st.integers(0, 1), max_size=20),
    st.integers(0, 5),
    st.integers(1, 5),
    st.integers(2, 4),
)
def test_repetitions_are_found(tokens: list[int], low: int, high: int, count: int) -> None:
    params = RepetitionDetectionParams(max(low, high), min(low, high), count)
    assert repeats(tokens, params) == repeats_by_comparing(tokens, params)


def test_no_repetition_is_looked_for_by_default() -> None:
    assert not repeats([1] * 50, RepetitionDetectionParams())
