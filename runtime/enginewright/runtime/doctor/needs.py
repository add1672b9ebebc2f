"""How much memory an engine takes, from its manifest entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from enginewright.runtime.artifact.manifest import EngineEntry, FileEntry, KVEntry

WORKSPACE_BYTES = 512 * 2**20
"""An estimate: the driver's context and kernels, and the activations of a step."""

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8": 1}


@dataclass(frozen=True)
class Needs:
    """Bytes: the weights, one row's cache at the longest context, one row's logits, the rest."""

    weights: int
    row_cache: int
    row_logits: int
    rows: int
    workspace: int = WORKSPACE_BYTES

    @property
    def total(self) -> int:
        return self.of(self.rows)

    def of(self, rows: int) -> int:
        """What it takes with so many rows."""
        return self.weights + self.workspace + rows * (self.row_cache + self.row_logits)

    def rows_within(self, available: int) -> int:
        """Rows that fit ``available`` bytes, at least 0."""
        left = available - self.of(0)
        return max(0, left // (self.row_cache + self.row_logits))


def needs(entry: EngineEntry, files: Mapping[str, FileEntry]) -> Needs:
    """What the engine takes at the entry's limits; ``files`` are the manifest's."""
    if entry.nvidia is not None:
        weights = entry.nvidia.weights_bytes
    else:
        weights = sum(files[name].size for name in entry.files)
    per_token = kv_bytes_per_token(entry.kv) or 0
    return Needs(
        weights=weights,
        row_cache=_row_tokens(entry) * per_token,
        row_logits=4 * entry.vocab_size,
        rows=entry.limits.max_batch,
    )


def kv_bytes_per_token(kv: KVEntry) -> int | None:
    """Bytes of cache that one token of one row takes; None for a dtype unknown here."""
    item = _ITEM_BYTES.get("float8" if kv.dtype.startswith("float8") else kv.dtype)
    return None if item is None else 2 * kv.layers * kv.kv_heads * kv.head_dim * item


def _row_tokens(entry: EngineEntry) -> int:
    """Tokens that a row's cache holds: a built block size is not divided."""
    context, block = entry.limits.max_context, entry.kv.block_size
    return -(-context // block) * block if block else context
