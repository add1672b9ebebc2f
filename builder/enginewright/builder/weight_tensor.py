"""A Weight as an initializer of the graph: read only when the target writes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from enginewright.builder.weights import Weight


class WeightTensor(ir.TensorProtocol):
    """An ONNX-IR tensor of dtype float32 that evaluates its Weight on demand."""

    def __init__(self, weight: Weight, name: str) -> None:
        self.weight = weight
        self.name: str | None = name
        self.shape = ir.Shape(weight.shape)
        self.dtype = ir.DataType.FLOAT
        self.doc_string: str | None = None
        self.raw: Any = weight
        self.metadata_props: dict[str, str] = {}
        self.meta: dict[str, Any] = {}

    @property
    def size(self) -> int:
        return int(np.prod(self.weight.shape))

    @property
    def nbytes(self) -> int:
        return 4 * self.size

    def numpy(self) -> Any:
        return self.weight.numpy()

    def tobytes(self) -> bytes:
        return bytes(self.weight.numpy().tobytes())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.asarray(self.numpy(), dtype=dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.numpy().__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self.numpy().__dlpack_device__()


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
