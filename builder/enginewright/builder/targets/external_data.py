"""ONNX models on disk: a graph in one file, weights in another, written one at a time.

Tensors are laid out in the order in which the graph first reads them. Those of a mebibyte and more
begin on a page, others on a cache line; a tensor that several read is stored once; those below
a kibibyte stay inside the graph. The bytes depend on the model alone.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from enginewright.builder.block_tensor import BlockTensor
from enginewright.builder.weight_tensor import WeightTensor

_INLINE = 1 << 10
_LARGE = 1 << 20
_PAGE = 4096
_LINE = 64
_CHUNK = 16 << 20


@dataclass(frozen=True)
class _Extent:
    offset: int
    length: int


class WeightsFile:
    """The weights of one model, or of several that share them; opened anew, flushed at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._known: dict[Hashable, _Extent] = {}
        self._kept: list[ir.TensorProtocol] = []  # an id means nothing once its object is gone

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._file:
            _flush(self._file)

    def save(self, model: ir.Model, graph_file: Path) -> None:
        """Write the graph beside the weights, and of its weights what is not there yet.

        Weights are read as they are written, none is kept; the model stays as it was.
        """
        assert graph_file.parent == self._path.parent
        values = _by_first_use(model.graph)
        tensors = {value: value.const_value for value in values}
        try:
            for value in values:
                value.const_value = self._external(value)
            proto = ir.to_proto(model)
        finally:
            for value, tensor in tensors.items():
                value.const_value = tensor
        with graph_file.open("wb") as file:
            file.write(proto.SerializeToString(deterministic=True))
            _flush(file)

    def _external(self, value: ir.Value) -> ir.ExternalTensor:
        """The value's tensor as a part of the file."""
        tensor = value.const_value
        assert tensor is not None
        content = _content(tensor)
        if content not in self._known:
            self._known[content] = self._write(tensor)
            self._kept.append(tensor)
            assert self._known[content].length == tensor.nbytes, f"{value.name}: size differs"
        extent = self._known[content]
        return ir.ExternalTensor(
            self._path.name,
            extent.offset,
            extent.length,
            tensor.dtype,
            shape=tensor.shape,  # type: ignore[arg-type]
            name=value.name or "",
            base_dir=self._path.parent,
        )

    def _write(self, tensor: ir.TensorProtocol) -> _Extent:
        _pad(self._file, _PAGE if tensor.nbytes >= _LARGE else _LINE)
        start = self._file.tell()
        for chunk in _chunks(tensor):
            self._file.write(chunk)
        return _Extent(start, self._file.tell() - start)


def _by_first_use(graph: ir.Graph) -> list[ir.Value]:
    """Initializers that go to the weights' file, in the order of the nodes that read them."""
    reads = (value for node in graph for value in node.inputs if value is not None)
    ordered = dict.fromkeys(value for value in reads if value.is_initializer())
    ordered |= dict.fromkeys(graph.initializers.values())
    return [value for value in ordered if value.const_value and value.const_value.nbytes >= _INLINE]


def _content(tensor: ir.TensorProtocol) -> Hashable:
    """Equal for tensors that are known to have the same bytes."""
    if isinstance(tensor, BlockTensor):
        return tensor.content
    if isinstance(tensor, WeightTensor):
        return id(tensor.weight), tensor.dtype
    return id(tensor)


def _chunks(tensor: ir.TensorProtocol) -> Iterator[memoryview]:
    if not isinstance(tensor, WeightTensor):
        packed = tensor.dtype.bitwidth < 8  # numpy has such numbers in a byte each
        yield memoryview(tensor.tobytes()) if packed else _bytes(tensor.numpy())
        return
    rows = tensor.weight.shape[0]
    step = max(1, _CHUNK * rows // tensor.nbytes)
    for start in range(0, rows, step):
        yield _bytes(tensor.rows(start, min(start + step, rows)))


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
