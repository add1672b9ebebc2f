"""Weights made of other weights: they read what is asked for and keep stored blocks."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.builder.weights import (
    ArrayWeight,
    Blocks,
    RowPermutedWeight,
    StackedWeight,
    transposed,
)


@pytest.fixture
def values():
    return np.random.default_rng(2).normal(size=(24, 64)).astype(np.float32)


class Watched(ArrayWeight):
    """Notes which rows are read."""

    def __init__(self, array):
        super().__init__(array)
        self.read = []

    def rows(self, start, stop):
        self.read.append((start, stop))
        return super().rows(start, stop)


def blocks(rows, *, zeros=False, offsets=False):
    rng = np.random.default_rng(rows)
    codes = rng.integers(0, 16, (rows, 64)).astype(np.uint8)
    return Blocks(
        4,
        32,
        lambda: codes,
        rng.uniform(0.01, 0.1, (rows, 2)).astype(np.float32),
        rng.integers(0, 16, (rows, 2)).astype(np.uint8) if zeros else None,
        rng.normal(size=(rows, 2)).astype(np.float32) if offsets else None,
    )


def test_permuted_rows_read_only_the_span_that_they_come_from(values):
    watched = Watched(values)
    heads = np.arange(24).reshape(3, 4, 2).swapaxes(1, 2).reshape(-1)
    weight = RowPermutedWeight(watched, heads)
    assert np.array_equal(weight.rows(8, 16), values[heads[8:16]])
    assert np.array_equal(weight.rows(10, 13), values[heads[10:13]])
    assert watched.read == [(8, 16), (9, 15)]
    assert np.array_equal(weight.numpy(), values[heads])


def test_a_transpose_of_a_transpose_is_the_weight_itself(values):
    weight = ArrayWeight(values)
    turned = transposed(weight)
    assert turned.shape == (64, 24)
    assert np.array_equal(turned.rows(5, 9), values.T[5:9])
    assert turned.blocks() is None
    assert transposed(turned) is weight


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({}, {"zeros": True}),
        ({"offsets": True}, {}),
        ({"zeros": True, "offsets": True}, {"zeros": True, "offsets": True}),
    ],
)
def test_stacked_blocks_have_the_values_of_their_parts(stored_in, first, second):
    parts = [stored_in(blocks(8, **first)), stored_in(blocks(16, **second))]
    stacked = StackedWeight(parts).blocks()
    assert stacked is not None
    assert (stacked.zero_points is not None) == ("zeros" in first | second)
    assert (stacked.offsets is not None) == ("offsets" in first | second)
    expected = np.concatenate([part.numpy() for part in parts])
    assert np.array_equal(stacked.dequantize(), expected)


def test_permuted_blocks_have_the_permuted_values(stored_in):
    stored = stored_in(blocks(8, zeros=True, offsets=True))
    order = np.random.default_rng(1).permutation(8)
    permuted = RowPermutedWeight(stored, order).blocks()
    assert permuted is not None
    assert np.array_equal(permuted.dequantize(), stored.numpy()[order])
