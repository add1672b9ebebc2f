"""What a step takes and gives, the same for every target.

B rows, S padded new positions, n blocks a row, L wanted logits, V vocabulary.

| tensor        | shape  | dtype   | meaning                                                   |
|---------------|--------|---------|-----------------------------------------------------------|
| input_ids     | [B, S] | int64   | new tokens, right padded (the padding's value is ignored) |
| new_lengths   | [B]    | int32   | how many of the S positions of a row are real, at least 1 |
| past_lengths  | [B]    | int32   | tokens of the row that the cache already holds            |
| block_table   | [B, n] | int32   | the cache blocks of the row, in order                     |
| logits_index  | [L]    | int64   | positions b * S + s of the [B, S] grid to be projected    |
| *logits*      | [L, V] | float32 | one row of logits for each wanted position                |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
    ``chunk_invariant``: and in whatever steps of two tokens or more its prompt is computed.
    ``kv_bytes_per_token``: bytes of cache that one token of one row takes. ``kv_block_size``:
    tokens of a block; with ``slots`` what each has, or 0 where the pool may change that.
    """

    vocab_size: int
    max_context: int
    max_batch: int
    steps: StepSupport
    kv_layout: KVLayout
    kv_bytes_per_token: int
    batch_invariant: bool
    chunk_invariant: bool = False
    kv_block_size: int = 0


@dataclass(frozen=True)
class BlockCopy:
    """The tokens ``start`` up to ``end`` of a cache block, copied to the same place of another."""

    source: int
    destination: int
    start: int
    end: int


class Engine(ABC):
    """A loaded engine and its cache pool. Not thread-safe: one caller steps it."""

    @abstractmethod
    def describe(self) -> EngineInfo:
        """Limits and abilities; constant for the life of the engine."""

    @abstractmethod
    def step(self, batch: StepBatch) -> NDArray[np.float32]:
        """Run the batch, write its keys and values to the cache, return logits [L, V].

        The returned array is only valid until the next step.
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
