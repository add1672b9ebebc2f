"""Ops that only ONNX Runtime has become ops of the ONNX standard, opset 24.

Before: SimplifiedLayerNormalization(x, w); QuickGelu(x) with alpha 1, of com.microsoft; Constant.
After: RMSNormalization(x, w); Swish(x); an initializer.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from enginewright.builder.passes.match import insert_before, replace

OPSET = 24
IR_VERSION = 11  # the first with opset 24's types


def standard_ops(model: ir.Model) -> None:
    """Replace them, and declare the opset."""
    for node in list(model.graph):
        if node.op_type == "SimplifiedLayerNormalization":
            epsilon = node.attributes["epsilon"].as_float()
            _swap(node, "RMSNormalization", {"axis": -1, "epsilon": epsilon, "stash_type": 1})
        elif node.op_type == "QuickGelu":
            assert node.attributes["alpha"].as_float() == 1.0
            _swap(node, "Swish", {"alpha": 1.0})
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    model.graph.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION


def _swap(node: ir.Node, op_type: str, attributes: dict[str, int | float]) -> None:
    graph = node.graph
    assert graph is not None
    new = ir.node(op_type, node.inputs, attributes)
    insert_before(node, [new])
    replace(node.outputs, new.outputs)
    graph.remove(node, safe=True)
