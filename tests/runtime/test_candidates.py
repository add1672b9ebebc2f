"""Sampling from the highest logits of a row: what the whole row gives, and mostly without it.

Rows are rounded to float16, as they are behind the head of such a model: many are equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from enginewright.runtime.engine import ReducedLogits, TopLogits
from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.sampler import Sampler

VOCAB, K = 3000, 64
PROMPT, OUTPUT = [5, 9, 9, 800], [17, 9, 17, 2]
Rows = Callable[[float], NDArray[np.float32]]


class Device:
    """Rows that stay on a device; ``brought`` counts those that did not."""

    def __init__(self, rows: NDArray[np.float32], k: int = K) -> None:
        self.rows, self.brought = rows, 0
        order = np.argsort(rows, axis=1)[:, ::-1][:, :k]  # of equal logits, not the first ones
        with np.errstate(all="ignore"):
            peak = rows.max(axis=1)
            normalizer = peak + np.log(np.exp(rows - peak[:, None]).sum(axis=1))
        top = np.take_along_axis(rows, order, axis=1)
        self.logits = ReducedLogits(top, order.astype(np.int32), normalizer, self._bring)

    def _bring(self, start: int, end: int) -> NDArray[np.float32]:
        self.brought += end - start
        return self.rows[start:end]


@pytest.fixture(params=range(2))
def rows(request: Any) -> Rows:
    """``rows(spread)``: 40 rows of float16 logits; the larger the spread, the surer the model."""
    rng = np.random.default_rng(request.param)

    def make(spread: float) -> NDArray[np.float32]:
        drawn = rng.standard_normal((40, VOCAB)) * spread + rng.uniform(-20, 20)
        return drawn.astype(np.float16).astype(np.float32)

    return make


def brought(params: SamplingParams, rows: NDArray[np.float32]) -> int:
    """How many rows the device had to give; each gave what the host's gives."""
    device, sampler = Device(rows), Sampler(params, VOCAB, (1, 2), PROMPT, 7)
    for at, row in enumerate(rows):
        found, wanted = sampler.sample(device.logits[at], OUTPUT), sampler.sample(row, OUTPUT)
        assert found.token_id == wanted.token_id
        assert list(found.top or ()) == list(wanted.top or ())
        for token, (logprob, rank) in (wanted.top or {}).items():
            assert (found.top or {})[token] == (pytest.approx(logprob, abs=1e-5), rank)
    return device.brought


def every_parameter() -> Iterator[dict[str, Any]]:
    """Sampled requests, by what they ask for."""
    for temperature in (0.0, 0.3, 0.7, 1.0, 1.7):
        for cut in (
            {},
            {"top_k": 1},
            {"top_k": 20},
            {"top_k": K},
            {"top_k": VOCAB},
            {"min_p": 0.05},
            {"min_p": 1e-6},
            {"top_p": 0.5},
            {"top_p": 0.95},
            {"top_p": 0.9, "min_p": 0.01},
            {"top_p": 0.9, "top_k": 30, "min_p": 0.001},
        ):
            yield {"temperature": temperature, **cut}


PROCESSORS: dict[str, dict[str, Any]] = {
    "none": {},
    "logprobs": {"logprobs": 5},
    "named logprobs": {"logprob_token_ids": [3, 4]},
    "min_tokens": {"min_tokens": 9, "stop_token_ids": [8]},
    "bias": {"logit_bias": {3: -1.5, 4: 6.0}},
    "bias down": {"logit_bias": dict.fromkeys(range(0, VOCAB, 7), -3.0)},
    "allowed": {"allowed_token_ids": list(range(0, VOCAB, 3))},
    "few allowed": {"allowed_token_ids": [4, 40, 400]},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.2},
    "rewards": {"repetition_penalty": 0.8, "presence_penalty": -0.5},
    "function": {"logits_processors": [lambda output, logits: -logits]},
}


@pytest.mark.parametrize("order", ["vllm", "hf"])
@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("spread", [0.02, 1.0, 4.0])
def test_it_is_what_the_whole_row_gives(rows: Rows, spread: float, name: str, order: str) -> None:
    for asked in every_parameter():
        params = SamplingParams(**asked, **PROCESSORS[name], processor_order=order, seed=3)
        brought(params, rows(spread)[:3])


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0},
        {"temperature": 0, "logprobs": 20},
        {"temperature": 0, "min_tokens": 9, "repetition_penalty": 1.1},
        {"temperature": 0.8, "top_k": 40},
        {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "logprobs": 1},
        {"temperature": 1.0, "min_p": 0.05},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 0.6, "top_p": 0.95},
    ],
)
def test_of_a_model_that_is_sure_no_row_is_brought(rows: Rows, asked: dict[str, Any]) -> None:
    assert brought(SamplingParams(**asked, seed=1), rows(7.0)) <= 3, "of 40: ties at the edge"


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 1.0},
        {"temperature": 1.0, "top_k": K + 1},
        {"temperature": 0, "logprobs": K + 1},
        {"temperature": 0, "logprobs": -1},
        {"temperature": 0, "logit_bias": {3: 0.5}},
        {"temperature": 0, "logits_processors": [lambda output, logits: logits]},
    ],
)
def test_what_needs_the_whole_row_brings_it(rows: Rows, asked: dict[str, Any]) -> None:
    assert brought(SamplingParams(**asked, seed=1), rows(4.0)[:5]) == 5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_told(bad: float) -> None:
    row = np.zeros((1, VOCAB), np.float32)
    row[0, slice(None) if bad == -math.inf else 7] = bad
    with pytest.raises(EnginewrightError, match="no usable logits"):
        Sampler(SamplingParams(temperature=0), VOCAB, (), ()).sample(Device(row).logits[0], [])


def test_a_vocabulary_of_no_more_than_the_highest() -> None:
    row = np.array([[0.5, 2.0, 1.0]], np.float32)
    device = Device(row, k=3)
    sampler = Sampler(SamplingParams(temperature=0, logprobs=2), 3, (), (), 0)
    assert list(sampler.sample(device.logits[0], []).top or ()) == [1, 2]
    assert device.brought == 0


def test_rows_are_brought_once_and_slices_whole() -> None:
    device = Device(np.random.default_rng(0).random((5, VOCAB)).astype(np.float32))
    row = device.logits[-1]
    assert isinstance(row, TopLogits)
    for _ in range(2):
        np.testing.assert_array_equal(np.asarray(row), device.rows[4])
    assert device.brought == 1
    np.testing.assert_array_equal(device.logits[1:3], device.rows[1:3])
    np.testing.assert_array_equal(np.asarray(device.logits), device.rows)
    assert (device.brought, len(device.logits)) == (8, 5)
