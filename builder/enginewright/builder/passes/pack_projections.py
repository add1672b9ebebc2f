"""Linear nodes that read the same activations become one, whose output is split.

Before: q = Linear(x, Wq); k = Linear(x, Wk); v = Linear(x, Wv).
After: q, k, v = Split(Linear(x, [Wq; Wk; Wv])); the stacked weight is never built in memory.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_ir as ir

from enginewright.builder import linear
from enginewright.builder.passes.match import constant_value, insert_before, replace
from enginewright.builder.weight_tensor import initializer, weight_of
from enginewright.builder.weights import StackedWeight, Weight


def pack_projections(model: ir.Model) -> None:
    """Pack every group of two or more Linear nodes that agree on input and on having a bias."""
    groups: dict[tuple[int, int], list[ir.Node]] = defaultdict(list)
    for node in model.graph:
        if node.op_type == linear.OP_TYPE and weight_of(node.inputs[1]) is not None:
            groups[id(node.inputs[0]), len(node.inputs)].append(node)
    for nodes in groups.values():
        if len(nodes) > 1:
            _pack(model.graph, nodes)


def _pack(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    operands = [_stacked(graph, nodes, 1)]
    if len(nodes[0].inputs) == 3:
        operands.append(_stacked(graph, nodes, 2))
    packed = ir.node(linear.OP_TYPE, [nodes[0].inputs[0], *operands], domain=linear.DOMAIN)
    sizes = np.array([_weight(node, 1).shape[0] for node in nodes], np.int64)
    name = "split." + "_".join(map(str, sizes))
    split = ir.node(
        "Split",
        [packed.outputs[0], constant_value(graph, name, sizes)],
        {"axis": -1},
        num_outputs=len(nodes),
    )
    leading = [*(nodes[0].outputs[0].shape or [])][:-1]
    packed.outputs[0].shape = ir.Shape([*leading, int(sizes.sum())])
    packed.outputs[0].type = nodes[0].outputs[0].type
    insert_before(nodes[0], [packed, split])
    replace([node.outputs[0] for node in nodes], split.outputs)
    graph.remove(nodes, safe=True)


def _stacked(graph: ir.Graph, nodes: list[ir.Node], index: int) -> ir.Value:
    names = [operand.name or "" for node in nodes if (operand := node.inputs[index]) is not None]
    return initializer(graph, "+".join(names), StackedWeight([_weight(n, index) for n in nodes]))


def _weight(node: ir.Node, index: int) -> Weight:
    weight = weight_of(node.inputs[index])
    assert weight is not None, "groups hold only nodes over stored weights"
    return weight
