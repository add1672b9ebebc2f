"""Activations, weights and caches become T, which is float16 or bfloat16.

Before: every floating value is float32; Casts to float32 mark where a part of the graph ends that
shall be T, such as behind the head.
After: what is computed from rows of an embedding is T, and so is all that it meets; what depends on
positions or on weights alone is computed in float32 and rounded once, where T meets it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from enginewright.builder.block_tensor import BlockTensor
from enginewright.builder.passes.match import initializer
from enginewright.builder.weight_tensor import WeightTensor
from enginewright.runtime.errors import BuildError

_LOOKUPS = ("Gather", "GatherBlockQuantized")


def half_activations(model: ir.Model, dtype: ir.DataType) -> None:
    """Change the graph to T = ``dtype``. Raises BuildError for a constant beyond its range."""
    rounding = _Rounding(model.graph, dtype)
    for value in model.graph.inputs:
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(dtype)
    for node in list(model.graph):
        rounding.visit(node)


@dataclass
class _Rounding:
    """``active``: values that are T. ``rounded``: what was float32, as T."""

    graph: ir.Graph
    dtype: ir.DataType
    active: set[ir.Value] = field(default_factory=set)
    rounded: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def visit(self, node: ir.Node) -> None:
        if node.op_type == "Cast" or not self._is_active(node):
            return
        for index, value in enumerate(node.inputs):
            if value is not None and value not in self.active and _is_floating(value):
                node.replace_input_with(index, self._half(node, value))
        for output in node.outputs:
            if not output.uses() and not output.is_graph_output():
                # Such as the mean of a norm, whose type is the op's own.
                output.type = output.shape = None
            elif output.dtype in (None, ir.DataType.FLOAT):
                # Values share their types: assigning to output.dtype would change others too.
                output.type = ir.TensorType(self.dtype)
                self.active.add(output)

    def _is_active(self, node: ir.Node) -> bool:
        if any(value in self.active for value in node.inputs):
            return True
        table = node.inputs[0] if node.inputs else None
        tensor = None if table is None else table.const_value
        return node.op_type in _LOOKUPS and isinstance(tensor, WeightTensor | BlockTensor)

    def _half(self, reader: ir.Node, value: ir.Value) -> ir.Value:
        if value.dtype == self.dtype:
            return value
        if value not in self.rounded:
            self.rounded[value] = self._constant(value) or self._cast(reader, value)
        return self.rounded[value]

    def _constant(self, value: ir.Value) -> ir.Value | None:
        """A weight or a number, rounded when it is written."""
        tensor = ir.convenience.get_const_tensor(value)
        name = f"{value.name}.{self.dtype.name.lower()}"
        if tensor is None or isinstance(tensor, BlockTensor):
            return None
        if isinstance(tensor, WeightTensor):
            return initializer(self.graph, WeightTensor(tensor.weight, name, self.dtype))
        exact = tensor.numpy()
        with np.errstate(over="ignore"):
            array = np.asarray(exact).astype(self.dtype.numpy())
        if not np.isfinite(array).all() and np.isfinite(exact).all():
            raise BuildError(
                f"{value.name}: it holds numbers beyond {self.dtype.name.lower()}; build with "
                f"another precision, such as bf16"
            )
        return initializer(self.graph, ir.tensor(array, self.dtype, name=name))

    def _cast(self, reader: ir.Node, value: ir.Value) -> ir.Value:
        made = value.producer()
        widened = made.inputs[0] if made is not None and made.op_type == "Cast" else None
        if widened is not None and widened.dtype == self.dtype:
            return widened
        node = ir.node("Cast", [value], {"to": self.dtype.value})
        node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(self.dtype)
        # Every reader stands behind the producer, and this one is the first.
        self.graph.insert_before(reader, node)
        return node.outputs[0]


def _is_floating(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()
