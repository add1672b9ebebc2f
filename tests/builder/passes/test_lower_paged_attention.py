"""The operator of our library for the CPU: caches as they are stored, keys across tokens."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from enginewright.builder.passes.lower_paged_attention import lower_paged_attention

_GRAPH = """
one (int32[B] past_lengths, int32[B] new_lengths, int32[B, n] block_table,
     float[N, 2, P, 16] "k_cache.0", float[N, 2, P, 16] "v_cache.0",
     float[B, S, 64] q, float[B, S, 32] k, float[B, S, 32] v, float[4] sinks)
    => (float[B, S, 64] out, float[N, 2, P, 16] "k_cache.0.out",
        float[N, 2, P, 16] "v_cache.0.out") {
    out, "k_cache.0.out", "v_cache.0.out" = enginewright.CachedAttention
        <num_heads = 4, kv_heads = 2, scale = 0.25, window = 24, softcap = 30.0, abi_version = 1>
        (q, k, v, "k_cache.0", "v_cache.0", block_table, past_lengths, new_lengths, , , sinks)
}
"""
_STEP = ["q", "k", "v", "k_cache.0", "v_cache.0", "block_table", "past_lengths", "new_lengths"]
_SCALES = {"k_cache.0": np.array([0.5, 0.25]), "v_cache.0": np.array([2.0, 4.0])}


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        ("float32", ir.DataType.FLOAT),
        ("float16", ir.DataType.FLOAT16),
        ("int8", ir.DataType.INT8),
    ],
)
def test_the_node_stays_and_its_caches_change(graph, dtype, stored):
    model = graph(_GRAPH).model
    (before,) = model.graph
    attributes = dict(before.attributes)
    lower_paged_attention(model, dtype, 64, _SCALES)
    (node,) = model.graph
    assert (node.domain, node.op_type) == ("enginewright", "CachedAttention")
    assert dict(node.attributes) == attributes
    for key, value in ((3, 1), (4, 2)):
        sizes = [16, 64] if key == 3 else [64, 16]
        for cache in (node.inputs[key], node.outputs[value]):
            assert (cache.dtype, list(cache.shape)) == (stored, ["blocks", 2, *sizes])
    assert node.outputs[0].dtype == ir.DataType.FLOAT
    names = [None if value is None else value.name for value in node.inputs]
    assert names[:11] == [*_STEP, None, None, "sinks"]
    scales = ["k_cache.0.scale", "v_cache.0.scale"] if dtype == "int8" else []
    assert names[11:] == scales
    for value, wanted in zip(node.inputs[11:], _SCALES.values(), strict=False):
        np.testing.assert_array_equal(value.const_value.numpy(), wanted.astype(np.float32))


_PACKED = _GRAPH.replace(
    "float[B, S, 64] q, float[B, S, 32] k, float[B, S, 32] v", "float[B, S, 128] x"
).replace("    out,", "    q, k, v = Split <axis = -1, num_outputs = 3> (x)\n    out,")


def test_a_packed_projection_is_not_split(graph):
    model = graph(_PACKED).model
    lower_paged_attention(model, "float16", 32, {})
    node = next(node for node in model.graph if node.op_type == "CachedAttention")
    assert [value and value.name for value in node.inputs[:4]] == ["x", None, None, "k_cache.0"]
