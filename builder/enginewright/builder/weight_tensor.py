"""A Weight as an initializer of the graph: read only when the target writes it."""

from __future__ import annotations

import onnx_ir as ir

from enginewright.builder.weights import Weight


class WeightTensor(ir.LazyTensor):
    """An ONNX-IR tensor of dtype float32 that evaluates its Weight on demand."""

    def __init__(self, weight: Weight, name: str) -> None:
        kind, shape = ir.DataType.FLOAT, ir.Shape(weight.shape)
        super().__init__(lambda: ir.Tensor(weight.numpy()), kind, shape, name=name)
        self.weight = weight


def weight_of(value: ir.Value | None) -> Weight | None:
    """The Weight behind an initializer, or None."""
    tensor = None if value is None else value.const_value
    return tensor.weight if isinstance(tensor, WeightTensor) else None


def initializer(graph: ir.Graph, name: str, weight: Weight) -> ir.Value:
    """Register a weight as an initializer under a name, or return the one of that name."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = WeightTensor(weight, name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    graph.initializers.add(value)
    return value
