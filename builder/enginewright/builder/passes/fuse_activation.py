"""SiLU becomes one node.

Before: Mul(x, Sigmoid(x)).
After: QuickGelu(x) with alpha 1, which is x * sigmoid(x).
"""

from __future__ import annotations

import onnx_ir as ir

from enginewright.builder.passes.match import (
    MICROSOFT,
    consumers,
    insert_before,
    other_input,
    replace,
)


def fuse_activation(model: ir.Model) -> None:
    """Fuse every product of a value with its own sigmoid."""
    for node in list(model.graph):
        if node.op_type != "Sigmoid":
            continue
        for product in consumers(node.outputs[0], "Mul"):
            x = other_input(product, node.outputs[0])
            if x is None or x is not node.inputs[0]:
                continue
            fused = ir.node("QuickGelu", [x], {"alpha": 1.0}, domain=MICROSOFT)
            insert_before(product, [fused])
            replace(product.outputs, fused.outputs)
