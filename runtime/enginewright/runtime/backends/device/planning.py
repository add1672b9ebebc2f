"""What a step binds, worked out from its batch alone: no device is touched here.

| input         | shape  | dtype | in a decode step                                            |
|---------------|--------|-------|-------------------------------------------------------------|
| input_ids     | [B, S] | int64 | S = 1; B is a bucket: the rows, and padding rows behind them |
| past_lengths  | [B]    | int32 | 0 in padding rows                                           |
| new_lengths   | [B]    | int32 | 1 in padding rows                                           |
| block_table   | [B, n] | int32 | always of the full width; unused places name the spare block |
| logits_index  | [L]    | int64 | L = B; unused places are 0                                  |

A decode step runs as a CUDA graph, which is captured for fixed shapes: so its batches come in
buckets. A padding row of a paged cache is one token at the start of the spare block, which no row
owns: what is written there is never read by another. The slots of a step are one range, behind
which other rows lie, so there is no harmless slot for a padding row: with ``slots`` each number of
rows is a bucket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.engine import KVLayout, StepBatch

ProfileName = Literal["decode", "prefill"]
INPUTS = ("input_ids", "past_lengths", "new_lengths", "block_table", "logits_index")
"""What a step may bind besides the caches and the logits."""

ALIGNMENT = 256
"""Of each input's start, in bytes, as TensorRT asks of memory that it is given."""


@dataclass(frozen=True)
class EngineFacts:
    """What planning needs to know of an engine. ``inputs``: those of INPUTS that it has.

    ``table_width``: blocks that a row may have at most.
    """

    layout: KVLayout
    max_batch: int
    table_width: int
    inputs: tuple[str, ...]

    @staticmethod
    def of(entry: EngineEntry) -> EngineFacts:
        shapes = {each.name: each.shape for each in entry.io if each.direction == "input"}
        return EngineFacts(
            layout=entry.kv.layout,
            max_batch=entry.limits.max_batch,
            table_width=-(-entry.limits.max_context // block_size(entry)),
            inputs=tuple(name for name in INPUTS if name in shapes),
        )


@dataclass(frozen=True)
class BoundStep:
    """A step as the engine takes it. ``first``: the slot that it starts at; 0 with ``paged``.

    A decode step starts at slot 0, where the rows that decode are, so that the graph of each
    bucket needs one set of addresses. One token of a row elsewhere is a prefill of one.
    ``wanted``: rows of the logits that were asked for; those behind them are padding's.
    """

    profile: ProfileName
    first: int
    wanted: int
    inputs: Mapping[str, NDArray[Any]]

    @property
    def rows(self) -> int:
        return len(self.inputs["input_ids"])

    @property
    def logits_rows(self) -> int:
        return len(self.inputs["logits_index"])


def bind(batch: StepBatch, facts: EngineFacts, spare_block: int) -> BoundStep:
    """The step of a batch. ``spare_block``: the block that padding is written to."""
    paged = facts.layout == "paged"
    first = 0 if paged else int(batch.block_table[0, 0])
    decode = batch.input_ids.shape[1] == 1 and first == 0
    rows = len(batch.input_ids)
    padded = bucket(rows, facts.max_batch) if decode and paged else rows
    wanted = len(batch.logits_index)
    every: dict[str, NDArray[Any]] = {
        "input_ids": _rows(batch.input_ids, padded, 0),
        "past_lengths": _rows(batch.past_lengths, padded, 0),
        "new_lengths": _rows(batch.new_lengths, padded, 1),
        "block_table": _table(batch.block_table, (padded, facts.table_width), spare_block),
        "logits_index": _rows(batch.logits_index, padded if decode else max(wanted, 1), 0),
    }
    return BoundStep(
        profile="decode" if decode else "prefill",
        first=first,
        wanted=wanted,
        inputs={name: every[name] for name in facts.inputs},
    )


def block_size(entry: EngineEntry) -> int:
    """Tokens of a block; with ``slots`` what the engine was built for, all of a row."""
    size = next(each.shape[2] for each in entry.io if each.name == "k_cache.0")
    assert isinstance(size, int), "the engine's caches have a fixed size"
    return size


def bucket(rows: int, max_batch: int) -> int:
    """The number of rows that a decode step of so many is padded to: 1, 2, 4, 8, 16, 24, ..."""
    assert 0 < rows <= max_batch
    padded = 1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // 8) * 8
    return min(padded, max_batch)


def offsets(inputs: Mapping[str, NDArray[Any]]) -> tuple[dict[str, int], int]:
    """Where each input starts in one block of memory, and the block's size in bytes."""
    starts, end = {}, 0
    for name, array in inputs.items():
        starts[name] = end
        end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return starts, end


def decode_bytes(facts: EngineFacts) -> int:
    """Bytes of the inputs of the largest decode step."""
    rows = facts.max_batch
    ones, table = np.ones(rows, np.int32), np.zeros((rows, 1), np.int32)
    ids = np.zeros((rows, 1), np.int64)
    return offsets(bind(StepBatch(ids, ones, ones, table, ids[:, 0]), facts, 0).inputs)[1]


def _rows(array: NDArray[Any], rows: int, fill: int) -> NDArray[Any]:
    """The array, lengthened to so many rows."""
    padded = np.full((rows, *array.shape[1:]), fill, array.dtype)
    padded[: len(array)] = array
    return padded


def _table(table: NDArray[np.int32], shape: tuple[int, int], spare_block: int) -> NDArray[np.int32]:
    padded = np.full(shape, spare_block, np.int32)
    rows, width = table.shape
    padded[:rows, :width] = table
    return padded
