"""Small questions about a graph that several passes ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

MICROSOFT = "com.microsoft"


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes the value, if it is of that type."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def consumers(value: ir.Value, op_type: str) -> list[ir.Node]:
    """Nodes of that type that read the value, in graph order of their uses."""
    return [use.node for use in value.uses() if use.node.op_type == op_type]


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The other operand of a binary node; None if the value is both or neither."""
    rest = [operand for operand in node.inputs if operand is not value]
    return rest[0] if len(node.inputs) == 2 and len(rest) == 1 else None


def constant(value: ir.Value | None, limit: int = 1 << 16) -> NDArray[Any] | None:
    """The content of a small constant, or None."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > limit:
        return None
    return np.asarray(tensor.numpy())


def scalar(value: ir.Value | None) -> float | None:
    """The content of a constant with one element, or None."""
    array = constant(value, limit=1)
    return None if array is None or array.size != 1 else float(array.reshape(-1)[0])


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Both shapes are known and equal, symbol for symbol."""
    return a.shape is not None and b.shape is not None and list(a.shape) == list(b.shape)


def replace(old: Sequence[ir.Value], new: Sequence[ir.Value]) -> None:
    """Let every reader of the old values, graph outputs too, read the new ones."""
    for before, after in zip(old, new, strict=True):
        name = before.name if before.is_graph_output() else None
        after.shape = after.shape or before.shape
        declare(after, after.dtype or before.dtype)
        ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
        if name is not None:
            before.name = f"{name}.replaced"
            after.name = name


def declare(value: ir.Value, dtype: ir.DataType | None, shape: ir.Shape | None = None) -> None:
    """Note the type of a value, and its shape where one is given; None: as it is."""
    if dtype is not None:
        value.type = ir.TensorType(dtype)  # of its own: a type may be changed in place
    if shape is not None:
        value.shape = shape


def insert_before(anchor: ir.Node, nodes: Sequence[ir.Node]) -> None:
    """Insert new nodes just before one of the graph."""
    assert anchor.graph is not None
    anchor.graph.insert_before(anchor, nodes)


def constant_value(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Register an array as an initializer, or return the one of that name."""
    return initializer(graph, ir.tensor(array, name=name))


def initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a tensor as an initializer, or return the one of that name."""
    assert tensor.name is not None
    if tensor.name in graph.initializers:
        return graph.initializers[tensor.name]
    shape, kind = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    value = ir.Value(name=tensor.name, shape=shape, type=kind)
    value.const_value = tensor
    graph.initializers.add(value)
    return value
