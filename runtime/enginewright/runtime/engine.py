"""What a step takes and gives, the same for every target.

B rows, S padded new positions, n blocks a row, L wanted logits, V vocabulary, K highest logits.

| tensor        | shape  | dtype   | meaning                                                   |
|---------------|--------|---------|-----------------------------------------------------------|
| input_ids     | [B, S] | int64   | new tokens, right padded (the padding's value is ignored) |
| new_lengths   | [B]    | int32   | how many of the S positions of a row are real, at least 1 |
| past_lengths  | [B]    | int32   | tokens of the row that the cache already holds            |
| block_table   | [B, n] | int32   | the cache blocks of the row, in order                     |
| logits_index  | [L]    | int64   | positions b * S + s of the [B, S] grid to be projected    |
| *logits*      | [L, V] | float32 | one row of logits for each wanted position                |

An engine may find the highest logits of each row itself (``ReducedLogits``), and keep the rows on
its device until somebody asks for one:

| tensor           | shape  | dtype   | meaning                                                |
|------------------|--------|---------|--------------------------------------------------------|
| *top_logits*     | [L, K] | float32 | the K highest of each row, highest first               |
| *top_ids*        | [L, K] | int32   | their tokens; of equal logits in any order             |
| *log_normalizer* | [L]    | float32 | log(sum(exp(row))) over all V                          |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

KVLayout = Literal["slots", "paged"]


@dataclass(frozen=True)
class StepBatch:
    """The rows of one step; see the module's table.

    With the layout ``slots`` the block table is [B, 1] and its slots are consecutive
    and ascending, so that the rows of a step are one contiguous range of the cache.
    """

    input_ids: NDArray[np.int64]
    new_lengths: NDArray[np.int32]
    past_lengths: NDArray[np.int32]
    block_table: NDArray[np.int32]
    logits_index: NDArray[np.int64]


@dataclass(frozen=True)
class StepSupport:
    """How many rows a step of each kind may hold; 0 means that the engine cannot run it.

    decode: S = 1 over any past. prefill: no past, ragged. extend: S > 1 over a past. ``tokens``:
    positions B * S that a step over a prompt may have; 0: as many as fit the cache.
    """

    decode: int
    prefill: int
    extend: int
    tokens: int = 0


@dataclass(frozen=True)
class EngineInfo:
    """What an engine declares about itself.

    ``batch_invariant``: a row gives bitwise the same logits alone and in any batch;
    ``chunk_invariant``: and in whatever steps of two tokens or more its prompt is computed;
    ``step_invariant``: and whether its tokens are computed one at a time or together.
    ``kv_bytes_per_token``: bytes of cache that one token of one row takes. ``kv_block_size``:
    tokens of a block; with ``slots`` what each has, or 0 where the pool may change that.
    ``cpu_kernels``: the instruction set whose kernels our operators on the CPU have; None: the
    engine has no such operators, or its library does not tell.
    """

    vocab_size: int
    max_context: int
    max_batch: int
    steps: StepSupport
    kv_layout: KVLayout
    kv_bytes_per_token: int
    batch_invariant: bool
    chunk_invariant: bool = False
    step_invariant: bool = False
    kv_block_size: int = 0
    cpu_kernels: str | None = None


@dataclass(frozen=True)
class BlockCopy:
    """The tokens ``start`` up to ``end`` of a cache block, copied to the same place of another."""

    source: int
    destination: int
    start: int
    end: int


@dataclass(frozen=True)
class TopLogits:
    """A row of logits of which the highest are known; ``np.asarray`` brings the row [V].

    ``logits`` [K] are the highest, ``ids`` [K] their tokens. Of those that equal the lowest of them
    there may be more. ``log_normalizer``: log(sum(exp(row))); no finite number where the row has
    one that is none.
    """

    logits: NDArray[np.float32]
    ids: NDArray[np.int32]
    log_normalizer: float
    bring: Callable[[], NDArray[np.float32]]

    @cached_property
    def whole(self) -> NDArray[np.float32]:
        """The row [V], brought once."""
        return self.bring()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.float32]:
        return np.array(self.whole, dtype, copy=copy)


class ReducedLogits:
    """Logits [L, V] of which the highest are known, until the next step.

    An index gives a row's TopLogits; a slice brings whole rows, ``np.asarray`` all of them.
    ``bring(start, end)`` gives rows, from the device where they are there.
    """

    def __init__(
        self,
        top_logits: NDArray[np.float32],
        top_ids: NDArray[np.int32],
        log_normalizer: NDArray[np.float32],
        bring: Callable[[int, int], NDArray[np.float32]],
    ) -> None:
        self._top_logits, self._top_ids = top_logits, top_ids
        self._log_normalizer, self._bring = log_normalizer, bring

    def __len__(self) -> int:
        return len(self._top_ids)

    @overload
    def __getitem__(self, at: int) -> TopLogits: ...
    @overload
    def __getitem__(self, at: slice) -> NDArray[np.float32]: ...
    def __getitem__(self, at: int | slice) -> TopLogits | NDArray[np.float32]:
        if isinstance(at, slice):
            start, end, step = at.indices(len(self))
            assert step == 1
            return self._bring(start, end)
        row = range(len(self))[at]
        return TopLogits(
            self._top_logits[row],
            self._top_ids[row],
            float(self._log_normalizer[row]),
            lambda: self._bring(row, row + 1)[0],
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.float32]:
        return np.array(self._bring(0, len(self)), dtype, copy=copy)


def reduced_outputs(rows: int, top: int) -> dict[str, NDArray[Any]]:
    """Room for what an engine finds of so many rows, in the order of the module's table."""
    return {
        "top_logits": np.empty((rows, top), np.float32),
        "top_ids": np.empty((rows, top), np.int32),
        "log_normalizer": np.empty(rows, np.float32),
    }


StepLogits: TypeAlias = NDArray[np.float32] | ReducedLogits
RowLogits: TypeAlias = NDArray[np.float32] | TopLogits


class Engine(ABC):
    """A loaded engine and its cache pool. Not thread-safe: one caller steps it."""

    @abstractmethod
    def describe(self) -> EngineInfo:
        """Limits and abilities; constant for the life of the engine."""

    @abstractmethod
    def step(self, batch: StepBatch) -> StepLogits:
        """Run the batch, write its keys and values to the cache, return logits [L, V].

        What is returned is only valid until the next step.
        """

    @abstractmethod
    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        """Copy within the cache, in the given order."""

    @abstractmethod
    def resize(self, blocks: int, block_size: int) -> None:
        """Make the pool hold ``blocks`` blocks of ``block_size`` tokens, keeping their content.

        Content beyond the new sizes is lost. A declared ``kv_block_size`` is kept.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the session and the cache. Closing twice is allowed."""
