"""What TensorRT-RTX's own attention layers take, found by trying with version 1.7.

The library itself says of what it does not take only that there is no kernel for it, and late.
Sizes of heads are asked where attention is lowered.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from enginewright.runtime.artifact.manifest import LimitsEntry
from enginewright.runtime.errors import RecipeError, UnsupportedModelError

MAX_VOLUME = (1 << 31) - 1
"""Elements that a tensor of TensorRT may have."""
_FEWEST_HEADS = 4


def check(graph: ir.Graph, limits: LimitsEntry) -> None:
    """Raise UnsupportedModelError for heads that no kernel takes, RecipeError for a cache of more
    elements than a tensor may have.
    """
    for node in graph:
        if node.op_type == "TRT_Attention":
            queries, cache = _sizes(node.inputs[0]), _sizes(node.inputs[1])
            _check_heads(queries[0])
            _check_volume(limits, math.prod(cache))


def _check_heads(heads: int) -> None:
    if heads < _FEWEST_HEADS:
        raise UnsupportedModelError(
            f"attention: native: {heads} query heads; TensorRT-RTX takes {_FEWEST_HEADS} or more; "
            f"build with attention: plugin"
        )


def _check_volume(limits: LimitsEntry, of_a_row: int) -> None:
    if limits.max_batch * of_a_row > MAX_VOLUME:
        raise RecipeError(
            f"limits: the cache of one layer has {limits.max_batch} rows of {of_a_row} elements, "
            f"and a tensor of TensorRT holds {MAX_VOLUME}: give a max_batch of at most "
            f"{MAX_VOLUME // of_a_row}, a smaller max_context, or attention: plugin"
        )


def _sizes(value: ir.Value | None) -> tuple[int, int, int]:
    """Heads, tokens (0 where they vary), and size of a head."""
    assert value is not None
    assert value.shape is not None
    heads, tokens, head_dim = (size if isinstance(size, int) else 0 for size in value.shape[1:])
    return heads, tokens, head_dim
