"""An ONNX model on disk: the graph in one file, its weights in another, written one at a time.

Tensors are laid out in the order in which the graph first reads them. Those of a mebibyte and more
begin on a page, others on a cache line; tensors with the same content are stored once; those below
a kibibyte stay inside the graph. The bytes depend on the model alone.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

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


def save_model(model: ir.Model, graph_file: Path, weights_file: Path) -> None:
    """Write both files, in one folder, and flush them to the disk.

    Weights are read as they are written, none is kept; the model stays as it was.
    """
    assert graph_file.parent == weights_file.parent
    values = _by_first_use(model.graph)
    with weights_file.open("wb") as file:
        extents = _write_weights(values, file)
        _flush(file)
    tensors = {value: value.const_value for value in values}
    try:
        for value, extent in zip(values, extents, strict=True):
            assert value.const_value is not None
            value.const_value = ir.ExternalTensor(
                weights_file.name,
                extent.offset,
                extent.length,
                value.const_value.dtype,
                shape=value.const_value.shape,  # type: ignore[arg-type]
                name=value.name or "",
                base_dir=weights_file.parent,
            )
        proto = ir.to_proto(model)
    finally:
        for value, tensor in tensors.items():
            value.const_value = tensor
    with graph_file.open("wb") as file:
        file.write(proto.SerializeToString(deterministic=True))
        _flush(file)


def _by_first_use(graph: ir.Graph) -> list[ir.Value]:
    """Initializers that go to the weights' file, in the order of the nodes that read them."""
    reads = (value for node in graph for value in node.inputs if value is not None)
    ordered = dict.fromkeys(value for value in reads if value.is_initializer())
    ordered |= dict.fromkeys(graph.initializers.values())
    return [value for value in ordered if value.const_value and value.const_value.nbytes >= _INLINE]


def _write_weights(values: list[ir.Value], file: BinaryIO) -> list[_Extent]:
    known: dict[Hashable, _Extent] = {}
    extents = []
    for value in values:
        tensor = value.const_value
        assert tensor is not None
        content = _content(tensor)
        if content not in known:
            _pad(file, _PAGE if tensor.nbytes >= _LARGE else _LINE)
            start = file.tell()
            for chunk in _chunks(tensor):
                file.write(chunk)
            known[content] = _Extent(start, file.tell() - start)
            assert known[content].length == tensor.nbytes, f"{value.name}: size differs"
        extents.append(known[content])
    return extents


def _content(tensor: ir.TensorProtocol) -> Hashable:
    """Equal for tensors that are known to have the same bytes."""
    if isinstance(tensor, BlockTensor):
        return tensor.content
    return id(tensor.weight if isinstance(tensor, WeightTensor) else tensor)


def _chunks(tensor: ir.TensorProtocol) -> Iterator[memoryview]:
    if not isinstance(tensor, WeightTensor):
        yield _bytes(tensor.numpy())
        return
    rows = tensor.weight.shape[0]
    step = max(1, _CHUNK * rows // tensor.nbytes)
    for start in range(0, rows, step):
        yield _bytes(tensor.weight.rows(start, min(start + step, rows)))


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
