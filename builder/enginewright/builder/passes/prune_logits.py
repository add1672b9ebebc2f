"""Only the wanted positions are projected to logits.

Before: logits [B, S, V] = f(Linear(x [B, S, H], head)), f elementwise.
After: logits [L, V] = f(Linear(Gather(Reshape(x, [-1, H]), logits_index [L]), head)).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from enginewright.builder import linear
from enginewright.builder.passes.match import constant_value, declare, insert_before

_ELEMENTWISE = {"Mul", "Div", "Tanh", "Add", "Sub", "Cast"}


def prune_logits(model: ir.Model) -> None:
    """Add the input logits_index and gather before the head."""
    graph = model.graph
    index = ir.Value(
        name="logits_index", shape=ir.Shape(["logits"]), type=ir.TensorType(ir.DataType.INT64)
    )
    graph.inputs.append(index)
    head, after = logits_head(graph.outputs[0])
    hidden = head.inputs[0]
    assert hidden is not None
    flat_shape = constant_value(graph, "flat_hidden", np.array([-1, _width(hidden)], np.int64))
    flat = ir.node("Reshape", [hidden, flat_shape])
    wanted = ir.node("Gather", [flat.outputs[0], index], {"axis": 0})
    for node, rows in ((flat, "tokens"), (wanted, "logits")):
        declare(node.outputs[0], hidden.dtype, ir.Shape([rows, _width(hidden)]))
    insert_before(head, [flat, wanted])
    head.replace_input_with(0, wanted.outputs[0])
    vocabulary = _width(graph.outputs[0])
    for node in (head, *after):
        node.outputs[0].shape = ir.Shape(["logits", vocabulary])


def logits_head(logits: ir.Value) -> tuple[ir.Node, list[ir.Node]]:
    """The Linear behind the logits and the elementwise nodes after it."""
    after: list[ir.Node] = []
    node = logits.producer()
    while node is not None and node.op_type in _ELEMENTWISE:
        after.append(node)
        chain = [value for value in node.inputs if value is not None and value.const_value is None]
        assert len(chain) == 1, f"{node.op_type} after the head has one input that is not constant"
        node = chain[0].producer()
    assert node is not None
    assert node.op_type == linear.OP_TYPE, f"the head is a Linear, found {node.op_type}"
    return node, after


def _width(value: ir.Value) -> int:
    assert value.shape is not None
    width = value.shape[-1]
    assert isinstance(width, int)
    return width
