"""A residual sum and the norm that follows it become one node.

Before: s = Add(x, y); n = SimplifiedLayerNormalization(s, w) or LayerNormalization(s, w, b).
After: n, _, _, s = SkipSimplifiedLayerNormalization(x, y, w) or SkipLayerNormalization(x, y, w, b).
"""

from __future__ import annotations

import onnx_ir as ir

from enginewright.builder.passes.match import (
    MICROSOFT,
    insert_before,
    producer,
    replace,
    same_shape,
)

_FUSED = {
    "SimplifiedLayerNormalization": "SkipSimplifiedLayerNormalization",
    "LayerNormalization": "SkipLayerNormalization",
}


def fuse_skip(model: ir.Model) -> None:
    """Fuse where both summands have the shape of the hidden state and the norm is the last axis."""
    for node in list(model.graph):
        if node.op_type not in _FUSED or node.attributes["axis"].as_int() != -1:
            continue
        total = producer(node.inputs[0], "Add")
        if total is None or not _is_residual(total):
            continue
        fused = ir.node(
            _FUSED[node.op_type],
            [*total.inputs, *node.inputs[1:]],
            {"epsilon": node.attributes["epsilon"].as_float()},
            domain=MICROSOFT,
            num_outputs=4,
        )
        insert_before(total, [fused])
        replace([*node.outputs[:1], *total.outputs], [fused.outputs[0], fused.outputs[3]])
        model.graph.remove([node, total], safe=True)


def _is_residual(total: ir.Node) -> bool:
    x, y = total.inputs
    return (
        x is not None
        and y is not None
        and same_shape(x, y)
        and x.shape is not None
        and len(x.shape) == 3
        and x.const_value is None
        and y.const_value is None
    )
