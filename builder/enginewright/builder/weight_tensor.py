"""A Weight as an initializer of the graph: read only when the target writes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from enginewright.builder.weights import Weight
from enginewright.runtime.errors import SourceError


class WeightTensor(ir.LazyTensor):
    """An ONNX-IR tensor that evaluates its Weight on demand, in float32 or one of the halves."""

    def __init__(self, weight: Weight, name: str, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
        shape = ir.Shape(weight.shape)
        super().__init__(lambda: ir.Tensor(self.rows(0, weight.shape[0])), dtype, shape, name=name)
        self.weight = weight

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) of axis 0 in the tensor's own type.

        Raises SourceError for values that this type cannot hold.
        """
        values = self.weight.rows(start, stop)
        if self.dtype == ir.DataType.FLOAT:
            return values
        with np.errstate(over="ignore"):
            rounded = values.astype(self.dtype.numpy())
        if not np.isfinite(rounded).all():
            raise SourceError(
                f"{self.name}: holds values of {np.abs(values).max():g}, which "
                f"{self.dtype.name.lower()} cannot hold; build with precision bf16"
            )
        return rounded


def weight_of(value: ir.Value | None) -> Weight | None:
    """The Weight behind an initializer, or None."""
    tensor = None if value is None else value.const_value
    return tensor.weight if isinstance(tensor, WeightTensor) else None


def initializer(
    graph: ir.Graph, name: str, weight: Weight, dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.Value:
    """Register a weight as an initializer under a name, or return the one of that name."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = WeightTensor(weight, name, dtype)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    graph.initializers.add(value)
    return value
