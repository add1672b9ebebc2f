"""What is decided of stored blocks, and how often they are read for it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from enginewright.builder.stored_blocks import Storage
from enginewright.builder.weights import Blocks, RowPermutedWeight, StackedWeight, Weight


class Counted(Weight):
    """Stored blocks that count how often their codes are read."""

    def __init__(self, rows: int, bits: int, reads: Counter[int]) -> None:
        super().__init__((rows, 64))
        codes = np.random.default_rng(rows).integers(0, 1 << bits, (rows, 64)).astype(np.uint8)

        def read():
            reads[id(self)] += 1
            return codes

        scales, offsets = np.ones((rows, 2), np.float32), np.ones((rows, 2), np.float32)
        self._blocks = Blocks(bits, 32, read, scales, offsets=offsets if bits == 4 else None)

    def rows(self, start, stop):
        raise AssertionError("what is carried is not read in float32")

    def blocks(self):
        return replace(self._blocks)


@pytest.fixture
def reads():
    return Counter()


def one(reads):
    return Counted(48, 4, reads)


def permuted_and_stacked(reads):
    order = np.random.default_rng(0).permutation(24)
    return StackedWeight([RowPermutedWeight(Counted(24, 4, reads), order), Counted(40, 4, reads)])


def of_two_forms(reads):
    return StackedWeight([Counted(24, 4, reads), Counted(40, 8, reads)])


def to_be_widened(reads):
    return Counted(48, 3, reads)


@pytest.mark.parametrize("make", [one, permuted_and_stacked, of_two_forms, to_be_widened])
def test_codes_are_read_once_and_only_when_they_are_written(reads, make):
    weight = make(reads)
    storage = Storage("int4", [weight])
    matrices = storage.of_layer(weight, "w")
    assert not reads
    for matrix in matrices:
        for part in ("codes", "scales", "offsets") if matrix.lazy.form.offsets else ("codes",):
            assert matrix.lazy.part(part).shape == matrix.lazy.form.shape(part)
    parts = weight.parts if isinstance(weight, StackedWeight) else (weight,)
    assert len(reads) == len(parts)
    assert set(reads.values()) == {1}
