"""Counts of an output that grows, and the rows that threads write over."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from enginewright.runtime.sampling import scratch
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.sampler import Sampler
from enginewright.runtime.sampling.tally import Tally

PARTS = st.lists(st.lists(st.integers(0, 200), max_size=90), max_size=5)


def counted(tally: Tally, output: list[int]) -> dict[int, int]:
    ids, counts = tally.of(output)
    assert (ids.dtype, counts.dtype) == (np.int64, np.float32)
    assert len(set(ids.tolist())) == ids.size == counts.size
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


@given(PARTS)
def test_a_growing_output_is_counted_at_each_look(parts: list[list[int]]) -> None:
    tally = Tally()
    output: list[int] = []
    for part in parts:
        output.extend(part)
        assert counted(tally, output) == Counter(output)


@given(st.lists(st.integers(0, 9), max_size=8), st.lists(st.integers(0, 9), max_size=8))
def test_another_output_is_counted_anew(first: list[int], second: list[int]) -> None:
    tally = Tally()
    assert counted(tally, first) == Counter(first)
    assert counted(tally, second) == Counter(second)
    second[:] = second[:-1]
    assert counted(tally, second) == Counter(second)


def test_a_row_is_given_out_again_and_grows() -> None:
    row = scratch.floats("a test", 10)
    assert np.shares_memory(row, scratch.floats("a test", 7))
    assert not np.shares_memory(row, scratch.floats("another test", 10))
    assert scratch.floats("a test", 1000).size == 1000
    assert scratch.flags("flags of a test", 3).dtype == np.bool_


def test_threads_have_rows_of_their_own() -> None:
    """Two threads draw at once what one draws alone."""
    logits = np.random.default_rng(0).standard_normal((2, 20_000)).astype(np.float32)
    params = SamplingParams(temperature=0.9, top_p=0.99, repetition_penalty=1.2, seed=3)

    def draws(row: int) -> list[int]:
        sampler = Sampler(params, logits.shape[1], (), [1, 2, 3])
        output: list[int] = []
        for _ in range(150):
            output.append(sampler.sample(logits[row], output).token_id)
        return output

    alone = [draws(0), draws(1)]
    together: list[list[int]] = [[], []]

    def work(row: int) -> None:
        together[row] = draws(row)

    threads = [threading.Thread(target=work, args=(row,)) for row in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_a_function_of_ones_own_may_keep_its_logits() -> None:
    kept: list[np.ndarray] = []

    def keep(_: list[int], logits: np.ndarray) -> np.ndarray:
        kept.append(logits)
        return logits

    params = SamplingParams(temperature=0, logits_processors=[keep])
    rows = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    sampler = Sampler(params, 40, (), [1])
    for step, row in enumerate(rows):
        sampler.sample(row, [1] * step)
    np.testing.assert_array_equal(np.stack(kept), rows)
