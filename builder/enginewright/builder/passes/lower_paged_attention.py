"""CachedAttention -> the operator of that name in our library for the CPU, layout ``paged``.

Before: CachedAttention(q, k, v, k_cache [blocks, kv_heads, size, D], v_cache, ..., cos?, sin?,
sinks?), caches in the model's own type.
After: the same with k_cache [blocks, kv_heads, D, size], caches of the type that is stored, and
k_scale and v_scale at the end where that is int8. Where q, k and v are one Split of a packed
projection, the op takes the packed tensor as q, and no k and v.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from enginewright.builder.passes.lower_attention import packed_projection
from enginewright.builder.passes.match import constant_value, declare
from enginewright.plugins.attention.contract import (
    ABI_VERSION,
    DOMAIN,
    INPUTS,
    OP_TYPE,
)

_TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "int8": ir.DataType.INT8,
}
_CACHES = ("k_cache", "v_cache")


def lower_paged_attention(
    model: ir.Model,
    dtype: str,
    block_size: int,
    kv_scales: Mapping[str, NDArray[np.float32]],
) -> None:
    """Lower every attention node.

    ``dtype``: of the caches, float32, float16 or int8. ``kv_scales``: with int8 the scale of each
    head [kv_heads] by the cache's name, such as k_cache.0.
    """
    graph = model.graph
    for value in graph.inputs:
        kind = (value.name or "").partition(".")[0]
        if kind in _CACHES:
            assert value.shape is not None
            _, heads, _, head_dim = value.shape
            sizes = [head_dim, block_size] if kind == "k_cache" else [block_size, head_dim]
            declare(value, _TYPES[dtype], ir.Shape(["blocks", heads, *sizes]))
    for node in [node for node in graph if node.op_type == OP_TYPE]:
        packed = packed_projection(node)
        if packed is not None:
            for index, operand in enumerate((packed, None, None)):
                node.replace_input_with(index, operand)
        if dtype == "int8":
            node.resize_inputs(len(INPUTS))
            for kind in _CACHES:
                scale = _scale(graph, node.inputs[INPUTS.index(kind)], kv_scales)
                node.replace_input_with(INPUTS.index(f"{kind[0]}_scale"), scale)
        for cache, output in zip(node.inputs[3:5], node.outputs[1:], strict=True):
            assert cache is not None
            declare(output, cache.dtype, cache.shape)
    graph.opset_imports[DOMAIN] = ABI_VERSION


def _scale(
    graph: ir.Graph, cache: ir.Value | None, scales: Mapping[str, NDArray[np.float32]]
) -> ir.Value:
    assert cache is not None
    name = cache.name or ""
    return constant_value(graph, f"{name}.scale", np.asarray(scales[name], np.float32))
