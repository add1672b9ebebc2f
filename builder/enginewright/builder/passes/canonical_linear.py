"""Every product with a stored weight becomes one Linear.

Before: Gemm(x, W[K, N], b), as GPT-2's Conv1D exports it, wrapped in reshapes.
After: Linear(x, W^T[N, K], b), with the transpose left to the moment the weight is written,
and the reshapes to two axes and back gone.
"""

from __future__ import annotations

import onnx_ir as ir

from enginewright.builder import linear
from enginewright.builder.passes.match import insert_before, producer, replace
from enginewright.builder.weight_tensor import initializer, weight_of
from enginewright.builder.weights import transposed


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
    turned = initializer(graph, f"{stored.name}.T", transposed(weight))
    flattened = producer(x, "Reshape")
    backs = [use.node for use in node.outputs[0].uses()]
    if flattened is not None and all(_restores(back, flattened.inputs[0]) for back in backs):
        x, outputs = flattened.inputs[0], [back.outputs[0] for back in backs]
    else:
        outputs = [node.outputs[0]]
    new = ir.node(linear.OP_TYPE, [x, turned, *bias], domain=linear.DOMAIN)
    insert_before(node, [new])
    for output in outputs:
        replace([output], new.outputs)


def _restores(back: ir.Node, x: ir.Value | None) -> bool:
    """The node only gives back the leading axes that x had before it was flattened."""
    shape = back.outputs[0].shape
    return (
        back.op_type == "Reshape"
        and x is not None
        and x.shape is not None
        and shape is not None
        and list(shape)[:-1] == list(x.shape)[:-1]
    )
