"""CachedAttention -> the node that TensorRT's parser takes for our plugin, layout ``paged``.

Before: CachedAttention(q, k, v, k_cache, v_cache, block_table, past_lengths, new_lengths, cos?,
sin?, sinks?), with places left empty.
After: EnginewrightCachedAttention with the same operands, no empty places, k_scale and v_scale at
the end where the cache is quantized, and attributes that say which of them there are.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from enginewright.builder.passes.match import constant_value, declare, insert_before, replace
from enginewright.plugins.attention.contract import ABI_VERSION, DOMAIN, INPUTS, OP_TYPE

PLUGIN_TYPE = "EnginewrightCachedAttention"
_CACHE_TYPES = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}


def lower_plugin_attention(
    model: ir.Model,
    dtype: ir.DataType,
    kv_cache: str,
    block_size: int,
    kv_scales: Mapping[str, NDArray[np.float32]],
) -> None:
    """Lower every attention node.

    ``kv_cache``: auto, int8 or fp8. ``kv_scales``: for a quantized cache the scale of each head
    [kv_heads] by the cache's name, such as k_cache.0: what a stored step stands for.
    """
    graph = model.graph
    cache_type = _CACHE_TYPES.get(kv_cache, dtype)
    for value in graph.inputs:
        if (value.name or "").startswith(("k_cache.", "v_cache.")):
            assert value.shape is not None
            value.shape = ir.Shape(["blocks", value.shape[1], block_size, value.shape[3]])
            value.dtype = cache_type
    for node in [node for node in graph if node.op_type == OP_TYPE]:
        operands = dict(zip(INPUTS, node.inputs, strict=False))
        if kv_cache != "auto":
            for cache, scale in (("k_cache", "k_scale"), ("v_cache", "v_scale")):
                operands[scale] = _scale(graph, operands[cache], kv_scales)
        given = [operands[name] for name in INPUTS if operands.get(name) is not None]
        attributes = _attributes(node, operands, block_size)
        new = ir.node(PLUGIN_TYPE, given, attributes, domain=DOMAIN, num_outputs=3)
        for output, before in zip(new.outputs, (node.inputs[0], *node.inputs[3:5]), strict=True):
            assert before is not None
            declare(output, before.dtype, before.shape)
        insert_before(node, [new])
        replace(node.outputs, new.outputs)
        graph.remove(node, safe=True)
    graph.opset_imports[DOMAIN] = ABI_VERSION


def _attributes(
    node: ir.Node, operands: Mapping[str, ir.Value | None], block_size: int
) -> dict[str, int | float | str]:
    given = node.attributes
    rotary_dim = given["rotary_dim"].as_int() if "rotary_dim" in given else 0
    interleaved = given["interleaved"].as_int() if "interleaved" in given else 0
    return {
        "num_heads": given["num_heads"].as_int(),
        "kv_heads": given["kv_heads"].as_int(),
        "scale": given["scale"].as_float(),
        "window": given["window"].as_int(),
        "softcap": given["softcap"].as_float(),
        "rotary_dim": rotary_dim,
        "interleaved": interleaved,
        "abi_version": ABI_VERSION,
        "has_sinks": int(operands.get("sinks") is not None),
        "quantized": int(operands.get("k_scale") is not None),
        "block_size": block_size,
        "plugin_version": str(ABI_VERSION),
        "plugin_namespace": DOMAIN,
    }


def _scale(
    graph: ir.Graph, cache: ir.Value | None, scales: Mapping[str, NDArray[np.float32]]
) -> ir.Value:
    assert cache is not None
    name = cache.name or ""
    return constant_value(graph, f"{name}.scale", np.asarray(scales[name], np.float32))
