"""Every product with a stored weight becomes one Linear.

Before: Gemm(x, W[K, N], b), as GPT-2's Conv1D exports it, wrapped in reshapes.
After: Linear(x, W^T[N, K], b), with the transpose left to the moment the weight is written.
"""

from __future__ import annotations

import onnx_ir as ir

from enginewright.builder import linear
from enginewright.builder.passes.match import insert_before, replace
from enginewright.builder.weight_tensor import initializer, weight_of
from enginewright.builder.weights import TransposedWeight


def canonical_linear(model: ir.Model) -> None:
    """Rewrite each Gemm over a weight; other Gemm nodes are left alone."""
    for node in list(model.graph):
        if node.op_type == "Gemm" and _is_plain(node):
            _rewrite(model.graph, node)


def _is_plain(node: ir.Node) -> bool:
    attributes = node.attributes
    flags = ("transA", 0), ("transB", 0), ("alpha", 1.0), ("beta", 1.0)
    return weight_of(node.inputs[1]) is not None and all(
        name not in attributes or attributes[name].value == value for name, value in flags
    )


def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
    x, stored, *bias = node.inputs
    weight = weight_of(stored)
    assert stored is not None
    assert weight is not None
    transposed = initializer(graph, f"{stored.name}.T", TransposedWeight(weight))
    new = ir.node(linear.OP_TYPE, [x, transposed, *bias], domain=linear.DOMAIN)
    insert_before(node, [new])
    replace(node.outputs, new.outputs)
    graph.remove(node, safe=True)
