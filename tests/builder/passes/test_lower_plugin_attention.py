"""The node that TensorRT's parser takes for the plugin: no empty places, all said in attributes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from enginewright.builder.passes.lower_plugin_attention import PLUGIN_TYPE, lower_plugin_attention
from enginewright.builder.passes.match import constant_value

_GRAPH = """
one (int32[B] past_lengths, int32[B] new_lengths, int32[B, n] block_table,
     float16[N, 2, P, 16] "k_cache.0", float16[N, 2, P, 16] "v_cache.0",
     float16[B, S, 64] q, float16[B, S, 32] k, float16[B, S, 32] v)
    => (float16[B, S, 64] out, float16[N, 2, P, 16] "k_cache.0.out",
        float16[N, 2, P, 16] "v_cache.0.out") {
    out, "k_cache.0.out", "v_cache.0.out" = enginewright.CachedAttention
        <num_heads = 4, kv_heads = 2, scale = 0.25, window = 24, softcap = 30.0, abi_version = 1>
        (q, k, v, "k_cache.0", "v_cache.0", block_table, past_lengths, new_lengths)
}
"""
_STEP = ["q", "k", "v", "k_cache.0", "v_cache.0", "block_table", "past_lengths", "new_lengths"]
_SCALES = {f"{kind}_cache.0": np.array([0.5, 0.25], np.float32) for kind in "kv"}


def _lowered(graph, kv_cache: str, *extras: str) -> ir.Node:
    model = graph(_GRAPH).model
    node = next(iter(model.graph))
    node.resize_inputs(11)
    for index, name in enumerate(("cos", "sin", "sinks"), 8):
        if name in extras:
            table = np.ones(4 if name == "sinks" else (24, 4), np.float32)
            node.replace_input_with(index, constant_value(model.graph, name, table))
    if "cos" in extras:
        node.attributes["rotary_dim"] = ir.AttrInt64("rotary_dim", 8)
        node.attributes["interleaved"] = ir.AttrInt64("interleaved", 0)
    lower_plugin_attention(model, ir.DataType.FLOAT16, kv_cache, 32, _SCALES)
    (lowered,) = model.graph
    return lowered


def _names(node: ir.Node) -> list[str | None]:
    return [value.name for value in node.inputs if value is not None]


@pytest.mark.parametrize("extras", [(), ("cos", "sin"), ("sinks",), ("cos", "sin", "sinks")])
def test_operands_that_there_are(graph, extras):
    node = _lowered(graph, "auto", *extras)
    assert (node.domain, node.op_type) == ("enginewright", PLUGIN_TYPE)
    assert None not in node.inputs
    assert _names(node) == [*_STEP, *extras]
    found = {name: attribute.value for name, attribute in node.attributes.items()}
    assert found == {
        "num_heads": 4,
        "kv_heads": 2,
        "scale": 0.25,
        "window": 24,
        "softcap": 30.0,
        "rotary_dim": 8 if "cos" in extras else 0,
        "interleaved": 0,
        "abi_version": 1,
        "has_sinks": int("sinks" in extras),
        "quantized": 0,
        "block_size": 32,
        "plugin_version": "1",
        "plugin_namespace": "enginewright",
    }


@pytest.mark.parametrize(
    ("kv_cache", "dtype"),
    [
        ("auto", ir.DataType.FLOAT16),
        ("int8", ir.DataType.INT8),
        ("fp8", ir.DataType.FLOAT8E4M3FN),
    ],
)
def test_the_cache_in_and_out(graph, kv_cache, dtype):
    node = _lowered(graph, kv_cache, "cos", "sin")
    for value in (*node.inputs[3:5], *node.outputs[1:]):
        assert (value.dtype, list(value.shape)) == (dtype, ["blocks", 2, 32, 16])
    assert node.outputs[0].dtype == ir.DataType.FLOAT16
    quantized = kv_cache != "auto"
    assert node.attributes["quantized"].as_int() == quantized
    scales = ["k_cache.0.scale", "v_cache.0.scale"] if quantized else []
    assert _names(node) == [*_STEP, "cos", "sin", *scales]
    for value in node.inputs[10:]:
        np.testing.assert_array_equal(value.const_value.numpy(), [0.5, 0.25])
