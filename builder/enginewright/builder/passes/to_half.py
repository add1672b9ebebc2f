"""Activations, weights and caches become T, float16 or bfloat16; norms and logits stay float32.

Before: every floating value is float32; the tables of rotary in CachedAttention too.
After: T as half_activations says, but
- n = Cast_T(RMSNormalization(Cast_float32(x), w)) with w in float32, and LayerNormalization alike;
- logits = f(Cast_float32(Linear(x, head))), f in float32;
- rotary tables and sinks of CachedAttention stay float32.
"""

from __future__ import annotations

import onnx_ir as ir

from enginewright.builder.passes.half_activations import half_activations
from enginewright.builder.passes.match import declare, insert_before, replace
from enginewright.builder.passes.prune_logits import logits_head
from enginewright.plugins.attention.contract import INPUTS, OP_TYPE

_EXACT = {
    "RMSNormalization": range(1, 2),
    "LayerNormalization": range(1, 3),
    OP_TYPE: range(INPUTS.index("cos"), INPUTS.index("sinks") + 1),
}
"""Inputs that stay float32, by op."""
_NORMS = ("RMSNormalization", "LayerNormalization")


def to_half(model: ir.Model, dtype: ir.DataType) -> None:
    """Change the graph to T = ``dtype``; weights are rounded when they are written."""
    graph = model.graph
    head, _ = logits_head(graph.outputs[0])
    _cast_behind(head, ir.DataType.FLOAT)
    exact = [
        (node, index, node.inputs[index])
        for node in graph
        for index in _EXACT.get(node.op_type, ())
        if index < len(node.inputs) and node.inputs[index] is not None
    ]
    for node, index, _ in exact:
        node.replace_input_with(index, None)
    half_activations(model, dtype)
    for node, index, value in exact:
        node.replace_input_with(index, value)
    for node in [node for node in graph if node.op_type in _NORMS]:
        _in_float32(node, dtype)
    for value in [value for value in graph.initializers.values() if not value.uses()]:
        del graph.initializers[value.name or ""]


def _in_float32(norm: ir.Node, dtype: ir.DataType) -> None:
    x = norm.inputs[0]
    assert x is not None
    widened = _cast(x, ir.DataType.FLOAT)
    insert_before(norm, [widened])
    norm.replace_input_with(0, widened.outputs[0])
    norm.outputs[0].dtype = ir.DataType.FLOAT
    _cast_behind(norm, dtype)


def _cast_behind(node: ir.Node, dtype: ir.DataType) -> None:
    """Let all readers of the node's output, the graph's too, read it in that type."""
    output = node.outputs[0]
    cast = _cast(output, dtype)
    assert node.graph is not None
    node.graph.insert_after(node, cast)
    replace([output], cast.outputs)
    cast.replace_input_with(0, output)


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype.value})
    declare(node.outputs[0], dtype, value.shape)
    return node
