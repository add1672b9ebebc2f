"""Log probabilities in flat lists read like the dicts; and limits on how many there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginewright.runtime import FlatLogprobs, Logprob, SamplingParams, SamplingParamsError
from enginewright.runtime.requests.generation import Generation, Request
from enginewright.runtime.requests.outputs import CompletionOutput
from enginewright.runtime.sampling.logprobs import check_logprobs
from enginewright.runtime.sampling.sampler import Sampler

V = 20
ENTRIES = st.builds(
    Logprob,
    st.floats(-50, 0),
    st.none() | st.integers(1, V),
    st.none() | st.text(max_size=3),
)
POSITIONS = st.dictionaries(st.integers(0, V - 1), ENTRIES, max_size=4)


def flat(positions: list[dict[int, Logprob]]) -> FlatLogprobs:
    made = FlatLogprobs()
    made.extend(positions)
    return made


@given(st.lists(POSITIONS, max_size=6), st.slices(6))
def test_they_read_like_a_list_of_dicts(positions: list[dict[int, Logprob]], part: slice) -> None:
    made = flat(positions)
    assert len(made) == len(positions)
    assert list(made) == positions
    assert [list(each) for each in made] == [list(each) for each in positions]  # in their order
    assert made[part] == flat(positions[part])
    if positions:
        assert made[-1] == positions[-1]
        assert positions[0] in made
    joined = flat(positions[:2])
    joined += positions[2:]
    assert joined == made
    for at in (len(positions), -len(positions) - 1):
        with pytest.raises(IndexError):
            made[at]


def test_their_lists() -> None:
    made = flat([{3: Logprob(-1.0, 1, "a"), 5: Logprob(-2.0, 2, "b")}])
    made.append(None)
    made.append_fast([7], [-3.0], [4], [None])
    assert made == FlatLogprobs(
        start_indices=[0, 2, 2],
        end_indices=[2, 2, 3],
        token_ids=[3, 5, 7],
        logprobs=[-1.0, -2.0, -3.0],
        ranks=[1, 2, 4],
        decoded_tokens=["a", "b", None],
    )
    assert made[1] == {}


def test_they_only_grow_at_their_end() -> None:
    made = flat([{1: Logprob(-1.0)}])
    for change in (
        lambda: made.insert(0, {}),
        lambda: made.__setitem__(0, {}),
        lambda: made.__delitem__(0),
        made.pop,
    ):
        with pytest.raises(TypeError, match="grow at their end"):
            change()


def test_a_request_gets_them_for_output_and_prompt() -> None:
    plain, flattened = (_run(flat_logprobs=each) for each in (False, True))
    assert isinstance(flattened.logprobs, FlatLogprobs)
    assert list(flattened.logprobs) == plain.logprobs
    assert len(flattened.logprobs) == 4
    assert _prompt_scores(False) == [None, *list(_prompt_scores(True))[1:]]
    assert isinstance(_prompt_scores(True), FlatLogprobs)


def _generation(**fields: Any) -> Generation:
    params = SamplingParams(seed=3, logprobs=2, prompt_logprobs=1, max_tokens=4, **fields)
    request = Request(0, None, (1, 2, 3), params)
    return Generation(request, Sampler(params, V, (), (1, 2, 3)), max_context=50, token_text=str)


def _run(**fields: Any) -> CompletionOutput:
    generation, rng = _generation(**fields), np.random.default_rng(2)
    deltas = FlatLogprobs()
    while not generation.finished:
        generation.accept(rng.normal(size=V).astype(np.float32))
        deltas.extend(generation.delta().logprobs or ())
    assert list(deltas) == list(generation.output().logprobs or ())
    return generation.output()


def _prompt_scores(as_flat: bool) -> Any:
    scores = _generation(flat_logprobs=as_flat).prompt_scores
    assert scores is not None
    scores.take(0, np.random.default_rng(4).normal(size=(3, V)).astype(np.float32))
    return scores.logprobs


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({"logprobs": 20}, 20),
        ({"logprobs": 21}, None),
        ({"logprobs": -1}, -1),
        ({"logprob_token_ids": [1, 2, 3]}, 0),
        ({"prompt_logprob_token_ids": [1, 2]}, 2),
        ({}, 0),
    ],
)
def test_within_max_logprobs(fields: dict[str, Any], most: int | None) -> None:
    check_logprobs(SamplingParams(**fields), most)


@pytest.mark.parametrize(
    ("fields", "most", "said"),
    [
        ({"logprobs": 21}, 20, "^logprobs=21 is not legal.* at most 20"),
        ({"logprobs": -1}, 20, "logprobs=-1"),
        ({"prompt_logprobs": 1}, 0, "prompt_logprobs=1"),
        ({"prompt_logprob_token_ids": [1, 2, 3]}, 2, "prompt_logprob_token_ids=3"),
    ],
)
def test_beyond_max_logprobs(fields: dict[str, Any], most: int, said: str) -> None:
    with pytest.raises(SamplingParamsError, match=said):
        check_logprobs(SamplingParams(**fields), most)
