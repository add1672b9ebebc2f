"""What a step binds: buckets, padding rows, offsets. Pure functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginewright.runtime.backends.device.planning import (
    ALIGNMENT,
    EngineFacts,
    bind,
    bucket,
    offsets,
)
from enginewright.runtime.scheduling.core import step_batch

NATIVE = EngineFacts("slots", 24, 1, ("input_ids", "past_lengths", "logits_index"))
PAGED = EngineFacts(
    "paged", 24, 5, ("input_ids", "past_lengths", "new_lengths", "block_table", "logits_index")
)
SPARE = 99


def table(*rows: list[int]) -> Any:
    return np.array(rows, np.int32)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (16, 16), (17, 20), (20, 20)],
)
def test_buckets(rows: int, expected: int) -> None:
    assert bucket(rows, 20) == expected


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_bucket_holds_its_rows_and_fits_the_engine(rows: int, max_batch: int) -> None:
    if rows <= max_batch:
        assert rows <= bucket(rows, max_batch) <= max_batch
        assert bucket(bucket(rows, max_batch), max_batch) == bucket(rows, max_batch)


def test_padding_rows_of_a_paged_decode_write_to_the_spare_block() -> None:
    batch = step_batch([[4], [5], [6]], [9, 0, 33], table([1, 2], [3, 0], [4, 5]))
    step = bind(batch, PAGED, SPARE)
    assert (step.profile, step.rows, step.wanted) == ("decode", 4, 3)
    assert step.inputs["input_ids"].tolist() == [[4], [5], [6], [0]]
    assert step.inputs["past_lengths"].tolist() == [9, 0, 33, 0]
    assert step.inputs["new_lengths"].tolist() == [1, 1, 1, 1]
    assert step.inputs["block_table"].tolist() == [
        [1, 2, SPARE, SPARE, SPARE],
        [3, 0, SPARE, SPARE, SPARE],
        [4, 5, SPARE, SPARE, SPARE],
        [SPARE] * 5,
    ]
    assert step.inputs["logits_index"].tolist() == [0, 1, 2, 0]


def test_slots_are_never_padded() -> None:
    batch = step_batch([[4], [5], [6]], [9, 1, 3], table([0], [1], [2]))
    step = bind(batch, NATIVE, SPARE)
    assert (step.profile, step.first, step.rows) == ("decode", 0, 3)
    assert set(step.inputs) == {"input_ids", "past_lengths", "logits_index"}


def test_one_token_of_a_slot_behind_others_is_a_prefill() -> None:
    step = bind(step_batch([[4]], [0], table([7])), NATIVE, SPARE)
    assert (step.profile, step.first, step.rows) == ("prefill", 7, 1)


def test_a_prefill_keeps_its_rows_and_has_the_full_table() -> None:
    batch = step_batch([[1, 2, 3], [4]], [0, 0], table([8], [9]))
    step = bind(batch, PAGED, SPARE)
    assert (step.profile, step.rows) == ("prefill", 2)
    assert step.inputs["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert step.inputs["logits_index"].tolist() == [2, 3]
    assert step.inputs["block_table"].shape == (2, 5)


def test_a_step_without_wanted_logits_asks_for_one_row() -> None:
    batch = step_batch([[1, 2, 3]], [0], table([8]), [])
    step = bind(batch, PAGED, SPARE)
    assert (step.logits_rows, step.wanted) == (1, 0)


def test_inputs_have_the_engines_types_and_lie_aligned_in_one_block() -> None:
    step = bind(step_batch([[4]] * 5, [1] * 5, table(*[[i] for i in range(5)])), PAGED, SPARE)
    types = {name: array.dtype.name for name, array in step.inputs.items()}
    assert types == {
        "input_ids": "int64",
        "past_lengths": "int32",
        "new_lengths": "int32",
        "block_table": "int32",
        "logits_index": "int64",
    }
    starts, size = offsets(step.inputs)
    ends = [starts[name] + array.nbytes for name, array in step.inputs.items()]
    assert all(start % ALIGNMENT == 0 for start in starts.values())
    assert all(end <= after for end, after in zip(ends, [*starts.values()][1:], strict=False))
    assert ends[-1] <= size
