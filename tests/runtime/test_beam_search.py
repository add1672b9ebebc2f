"""One search, whatever the algorithm: masks, stop strings, log probabilities, what goes wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from enginewright.runtime.beam_search.candidates import likeliest
from enginewright.runtime.beam_search.params import BeamSearchParams
from enginewright.runtime.beam_search.search import BeamSearch
from enginewright.runtime.errors import EnginewrightError, RequestError, SamplingParamsError

VOCAB, EOS = 12, 11
Logits = NDArray[np.float32]
both = pytest.mark.parametrize("algorithm", ["vllm", "hf"])


def model(tokens: Sequence[int], vocab: int = VOCAB) -> Logits:
    """Random logits that depend on all tokens."""
    return np.random.default_rng([vocab, *tokens]).normal(0, 2, vocab).astype(np.float32)


def drive(
    params: BeamSearchParams, logits: Callable[[Sequence[int]], Logits] = model, **given: Any
) -> BeamSearch:
    given = {"vocab_size": VOCAB, "eos_token_ids": [EOS], "room": 100} | given
    search = BeamSearch(params, **given)
    beams: list[list[int]] = [[]]
    while beams:
        branches = search.step([logits(beam) for beam in beams])
        beams = [[*beams[parent], token] for parent, token in branches]
        assert len({tuple(beam) for beam in beams}) == len(beams) <= params.beam_width
        assert search.finished == (not beams)
    return search


def ids(search: BeamSearch) -> list[list[int]]:
    return [each.token_ids for each in search.hypotheses()]


class Letters:
    """A text of which token t is the letter t, and its stop strings."""

    def __init__(self, *stop: str, text: str = "") -> None:
        self._stop, self._text = stop, text
        self.stop_reason: str | None = None

    def push(self, token_id: int) -> None:
        self._text += "abcdefghijkl"[token_id]
        self.stop_reason = next((stop for stop in self._stop if stop in self._text), None)

    def finish(self) -> None:
        pass

    def fork(self) -> Letters:
        return Letters(*self._stop, text=self._text)


@both
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all(algorithm: Any, length_penalty: float) -> None:
    """Wide enough to follow everything, against a look at everything."""
    vocab, length, width = 4, 3, 64
    params = BeamSearchParams(width, length, algorithm=algorithm, length_penalty=length_penalty)

    def logits(tokens: Sequence[int]) -> Logits:
        return model(tokens, vocab)

    scores = {}
    for tokens in itertools.product(range(vocab), repeat=length):
        cut = tokens[: tokens.index(3) + 1] if 3 in tokens else tokens
        total = 0.0
        for at, token in enumerate(cut):
            row = logits(cut[:at]).astype(np.float64)
            total += row[token] - np.log(np.exp(row).sum())
        scores[cut] = total / len(cut) ** length_penalty
    found = drive(params, logits, vocab_size=vocab, eos_token_ids=[3]).hypotheses()
    expected = sorted(scores, key=lambda cut: -scores[cut])
    assert [tuple(each.token_ids) for each in found] == expected
    assert [each.score for each in found] == pytest.approx([scores[cut] for cut in expected])


@both
def test_endings_are_told(algorithm: Any) -> None:
    params = BeamSearchParams(4, 6, algorithm=algorithm, stop_token_ids=[2])
    found = drive(params, text=Letters("ba", "d")).hypotheses()
    assert {"stop", "length"} <= {each.ending.reason for each in found}
    for each in found:
        token_ids, ending = each.token_ids, each.ending
        if token_ids[-1] == EOS:
            assert (ending.reason, ending.stop_reason) == ("stop", None)
        elif token_ids[-1] == 2:
            assert (ending.reason, ending.stop_reason) == ("stop", 2)
        elif ending.stop_reason is not None:
            assert ending.reason == "stop"
            text = "".join("abcdefghijkl"[token] for token in token_ids)
            assert ending.stop_reason in ("ba", "d")
            assert text.endswith(ending.stop_reason)
        else:
            assert ending.reason == "length"
            assert len(token_ids) == 6


@both
def test_a_stop_string_of_one_token_is_as_good_as_its_id(algorithm: Any) -> None:
    by_text = drive(BeamSearchParams(3, 8, algorithm=algorithm), text=Letters("e"))
    by_id = drive(BeamSearchParams(3, 8, algorithm=algorithm, stop_token_ids=[4]))
    if algorithm == "vllm":
        assert ids(by_text) == ids(by_id)
        assert [each.score for each in by_text.hypotheses()] == [
            each.score for each in by_id.hypotheses()
        ]
    assert any(each.ending.stop_reason == "e" for each in by_text.hypotheses())
    for each in by_text.hypotheses():
        assert 4 not in each.token_ids[:-1]


@both
def test_no_beam_goes_on_behind_a_stop_string(algorithm: Any) -> None:
    """Where all candidates complete one, the search is over."""
    stop = tuple("abcdefghijk")
    search = drive(BeamSearchParams(3, 8, algorithm=algorithm), text=Letters(*stop))
    assert [len(tokens) for tokens in ids(search)] == [1, 1, 1]


@both
def test_only_what_is_allowed(algorithm: Any) -> None:
    params = BeamSearchParams(4, 6, algorithm=algorithm, allowed_token_ids=[3, 5, 9])
    for tokens in ids(drive(params)):
        assert set(tokens) <= {3, 5, 9}
        assert len(tokens) == 6


@both
def test_fewer_sequences_than_beams(algorithm: Any) -> None:
    """There is no second one to give where one token is allowed."""
    params = BeamSearchParams(4, 5, algorithm=algorithm, allowed_token_ids=[3])
    assert ids(drive(params)) == [[3] * 5]


@both
def test_min_tokens(algorithm: Any) -> None:
    params = BeamSearchParams(
        3, 6, algorithm=algorithm, min_tokens=4, stop_token_ids=[2], length_penalty=-1.0
    )
    found = ids(drive(params))
    assert all(not {2, EOS} & set(tokens[:4]) for tokens in found)
    assert any(len(tokens) == 5 for tokens in found)


@both
def test_ignore_eos(algorithm: Any) -> None:
    params = BeamSearchParams(3, 30, algorithm=algorithm, ignore_eos=True)
    found = drive(params).hypotheses()
    assert all(each.ending.reason == "length" for each in found)
    assert any(EOS in each.token_ids for each in found)


@both
def test_the_context_ends_beams(algorithm: Any) -> None:
    params = BeamSearchParams(3, 50, algorithm=algorithm, ignore_eos=True)
    search = drive(params, room=4)
    assert search.max_tokens == 4
    assert [len(tokens) for tokens in ids(search)] == [4, 4, 4]


class Word:
    """Tokens 1, 2, 3 in this order, then nothing more."""

    def __init__(self, rest: Sequence[int] = (1, 2, 3)) -> None:
        self._rest = list(rest)

    def allowed(self) -> NDArray[np.int64]:
        return np.array(self._rest[:1], np.int64)

    def advanced(self, token_id: int) -> Word:
        assert token_id == self._rest[0]
        return Word(self._rest[1:])


@both
def test_a_constraint_that_is_complete_ends_its_beam(algorithm: Any) -> None:
    params = BeamSearchParams(3, 9, algorithm=algorithm)
    (found,) = drive(params, constraint=Word()).hypotheses()
    assert found.token_ids == [1, 2, 3]
    assert (found.ending.reason, found.ending.stop_reason) == ("stop", None)
    assert found.score == pytest.approx(found.cumulative_logprob / 3, rel=1e-6)


class Fives:
    """Any number of 5s up to three, where EOS may also come."""

    def __init__(self, count: int = 0) -> None:
        self._count = count

    def allowed(self) -> NDArray[np.int64]:
        return np.array([5, EOS] if self._count < 3 else [EOS], np.int64)

    def advanced(self, token_id: int) -> Fives:
        assert token_id == 5
        return Fives(self._count + 1)


@both
def test_eos_ends_a_form_unless_it_is_ignored(algorithm: Any) -> None:
    params = BeamSearchParams(4, 9, algorithm=algorithm)
    found = ids(drive(params, constraint=Fives()))
    assert sorted(found) == [[5, 5, 5, EOS], [5, 5, EOS], [5, EOS], [EOS]]
    params = BeamSearchParams(4, 9, algorithm=algorithm, ignore_eos=True)
    assert ids(drive(params, constraint=Fives())) == [[5, 5, 5]]


@both
def test_nothing_allowed_at_all(algorithm: Any) -> None:
    params = BeamSearchParams(3, 9, algorithm=algorithm, allowed_token_ids=[5])
    with pytest.raises(RequestError, match="no token can be chosen: allowed_token_ids"):
        drive(params, constraint=Word())


@both
def test_log_probabilities(algorithm: Any) -> None:
    params = BeamSearchParams(2, 5, algorithm=algorithm)
    for each in drive(params).hypotheses():
        tokens = each.token_ids
        total = 0.0
        for at, link in enumerate(each.links):
            scores = link.scores(4)
            row = model(tokens[:at]).astype(np.float64)
            order = np.argsort(-row)
            assert list(scores)[:4] == order[:4].tolist()
            assert tokens[at] in scores
            for token, (logprob, rank) in scores.items():
                assert logprob == pytest.approx(row[token] - np.log(np.exp(row).sum()), abs=1e-5)
                assert order[(rank or 0) - 1] == token
            total += scores[tokens[at]][0]
        assert each.cumulative_logprob == pytest.approx(total, rel=1e-6)


def test_the_chosen_token_is_told_however_unlikely() -> None:
    """By Hugging Face's rules a beam may go on with less likely ones than are told."""
    logits = np.log(np.array([0.3, 0.25, 0.2, 0.15, 0.06, 0.04], np.float32))
    params = BeamSearchParams(2, 1, algorithm="hf", stop_token_ids=[0, 1, 2, 3])
    search = BeamSearch(params, vocab_size=6, eos_token_ids=[], room=9)
    search.step([logits])
    link = search.hypotheses()[0].links[0]
    assert list(link.scores(0)) == [0]
    assert list(link.scores(2)) == [0, 1]
    (unlikely,) = [each.links[0] for each in search.hypotheses() if each.token_ids == [1]]
    assert list(unlikely.scores(1)) == [0, 1]


def test_ranks_are_not_told_of_some_tokens_only() -> None:
    """And the log probabilities are of the whole vocabulary."""
    params = BeamSearchParams(2, 3, allowed_token_ids=[2, 7, 8])
    for each in drive(params).hypotheses():
        scores = each.links[0].scores(4)
        row = model([]).astype(np.float64)
        for token, (logprob, rank) in scores.items():
            assert rank is None
            assert logprob == pytest.approx(row[token] - np.log(np.exp(row).sum()), abs=1e-5)
        assert set(scores) <= {2, 7, 8}


def test_beams_that_still_run_can_be_seen() -> None:
    search = BeamSearch(BeamSearchParams(3, 9), vocab_size=VOCAB, eos_token_ids=[EOS], room=9)
    assert search.hypotheses("abort") == []
    branches = search.step([model([])])
    assert len(branches) == 3
    found = search.hypotheses("abort")
    assert {tuple(each.token_ids) for each in found} >= {(branches[0].token,)}
    assert "abort" in {each.ending.reason for each in found}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers(value: float) -> None:
    search = BeamSearch(BeamSearchParams(3, 9), vocab_size=VOCAB, eos_token_ids=[EOS], room=9)
    row = model([])
    row[4] = value
    with pytest.raises(EnginewrightError, match="no usable logits"):
        search.step([row])


def test_logits_that_make_all_impossible() -> None:
    search = BeamSearch(BeamSearchParams(3, 9), vocab_size=VOCAB, eos_token_ids=[EOS], room=9)
    with pytest.raises(EnginewrightError, match="no usable logits"):
        search.step([np.full(VOCAB, -np.inf, np.float32)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stop_token_ids": [12]}, r"stop_token_ids=\[12\] are not in the vocabulary: .* 0 to 11"),
        ({"allowed_token_ids": [3, 40]}, r"allowed_token_ids=\[40\] are not in the vocabulary"),
        ({"min_tokens": 1, "allowed_token_ids": [EOS]}, "min_tokens=1 leaves no token to choose"),
        (
            {"min_tokens": 2, "allowed_token_ids": [3, EOS], "stop_token_ids": [3]},
            "min_tokens=2 leaves no token to choose",
        ),
    ],
)
def test_what_does_not_fit_the_model(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SamplingParamsError, match=message):
        drive(BeamSearchParams(2, 9, **fields))


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 24), st.booleans(), st.integers(0, 5))
def test_the_likeliest_of_a_large_vocabulary(
    seed: int, count: int, restricted: bool, barred: int
) -> None:
    """As from a full sort: in order, without those barred, and never an impossible one."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 5, 20_011).astype(np.float32)
    logits[random.random(logits.size) < 0.3] = -np.inf
    out = np.argsort(-logits)[random.integers(0, 8, barred)]
    allowed = np.sort(random.choice(logits.size, 50, replace=False)) if restricted else None
    found = likeliest(logits, count, allowed, out)
    order = np.argsort(-logits, kind="stable")
    rank = {int(token): at for at, token in enumerate(order, 1)}
    keep = set(order.tolist() if allowed is None else allowed.tolist()) - set(out.tolist())
    expected = [token for token in order.tolist() if token in keep and logits[token] > -np.inf]
    assert found.tokens.tolist() == expected[:count]
    if found.ranks is not None:
        assert found.ranks.tolist() == [rank[token] for token in expected[:count]]
    assert (found.ranks is None) == restricted
    normal = np.log(np.exp(logits.astype(np.float64)).sum())
    assert found.logprobs.tolist() == pytest.approx(
        (logits[found.tokens] - normal).tolist(), abs=1e-4
    )
