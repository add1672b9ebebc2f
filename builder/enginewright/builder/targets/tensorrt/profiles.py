"""Optimization profiles: the range of each input's dimensions, for decode and for prefill."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from enginewright.builder.targets.tensorrt.job import Profile
from enginewright.builder.targets.tensorrt.native_limits import MAX_VOLUME
from enginewright.runtime.artifact.manifest import LimitsEntry

MAX_STEP_TOKENS = 2048
"""Positions (rows times the widest) of a step over prompts; longer ones come in several steps."""
_BEST_TOKENS = 512
_MAX_PREFILL_ROWS = 8
_POOLS = 2
"""How many times the blocks of max_batch full rows a pool may hold: prompts kept for reuse."""

Range = tuple[int, int, int]


def step_tokens(limits: LimitsEntry) -> int:
    """The most positions that a step over prompts may have, see engine.StepSupport."""
    return min(limits.max_context, MAX_STEP_TOKENS)


def prefill_rows(limits: LimitsEntry) -> int:
    """The most rows that a step over prompts may have."""
    return min(limits.max_batch, _MAX_PREFILL_ROWS)


def make_profiles(graph: ir.Graph, limits: LimitsEntry) -> tuple[Profile, ...]:
    """A profile for decode, one for prefill. Dimensions go by the names that they have in the
    graph: those of export.py, and ``logits`` for the wanted positions.
    """
    tokens = step_tokens(limits)
    rows = prefill_rows(limits)
    decode: dict[str, Range] = {
        "batch": (1, 1, limits.max_batch),
        "sequence": (1, 1, 1),
        "logits": (1, 1, limits.max_batch),
    }
    prefill: dict[str, Range] = {
        "batch": (1, 1, rows),
        "sequence": (1, min(tokens, _BEST_TOKENS), tokens),
        "logits": (1, 1, tokens),
    }
    paged = _paged(graph, limits)
    return (
        Profile("decode", _shapes(graph, decode | paged)),
        Profile("prefill", _shapes(graph, prefill | paged)),
    )


def _paged(graph: ir.Graph, limits: LimitsEntry) -> dict[str, Range]:
    """How many blocks there are; one more is for padding rows. Empty for a cache in slots."""
    caches = [value for value in graph.inputs if (value.name or "").startswith("k_cache.")]
    _, heads, size, head_dim = _dimensions(caches[0])
    if "block_table" not in [value.name for value in graph.inputs]:
        return {}
    assert isinstance(heads, int)
    assert isinstance(size, int)
    assert isinstance(head_dim, int)
    width = -(-limits.max_context // size)
    full = limits.max_batch * width
    most = min(_POOLS * full + 1, MAX_VOLUME // (heads * size * head_dim))
    return {"blocks": (1, min(full, most), most), "blocks_per_row": (1, width, width)}


def _shapes(
    graph: ir.Graph, ranges: Mapping[str, Range]
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    found = {}
    for value in graph.inputs:
        assert value.name is not None
        sizes = [
            ranges[size] if isinstance(size, str) else (size, size, size)
            for size in _dimensions(value)
        ]
        lowest, best, highest = zip(*sizes, strict=True)
        found[value.name] = (lowest, best, highest)
    return found


def _dimensions(value: ir.Value) -> tuple[int | str, ...]:
    assert value.shape is not None
    return tuple(size if isinstance(size, int) else str(size) for size in value.shape)
