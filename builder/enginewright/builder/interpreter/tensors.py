"""ONNX tensors as torch tensors, in the graph's own types.

torch has no 4-bit type of one element, so these are held in the smallest type that has all of
their values:

| ONNX       | torch         |
|------------|---------------|
| INT4       | int8          |
| UINT4      | uint8         |
| FLOAT4E2M1 | float8_e4m3fn |
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from enginewright.builder.interpreter.errors import GraphError

TORCH_TYPES = {
    ir.DataType.BOOL: torch.bool,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.FLOAT4E2M1: torch.float8_e4m3fn,
}
_BITS = {torch.bfloat16: np.int16, torch.float8_e4m3fn: np.uint8}
"""Types that numpy knows by ml_dtypes alone: handed over as integers of their size."""
_HELD_IN = {
    ir.DataType.INT4: np.int8,
    ir.DataType.UINT4: np.uint8,
    ir.DataType.FLOAT4E2M1: ml_dtypes.float8_e4m3fn,
}


def torch_type(dtype: ir.DataType) -> torch.dtype:
    """The torch type that holds an ONNX type; raises GraphError if there is none."""
    if dtype not in TORCH_TYPES:
        raise GraphError(f"tensors of type {dtype.name} are not known to the interpreter")
    return TORCH_TYPES[dtype]


def to_torch(tensor: ir.TensorProtocol) -> Tensor:
    """A constant of the graph; its values are read now."""
    kind = torch_type(tensor.dtype)
    array: NDArray[np.generic] = np.asarray(tensor.numpy())
    if tensor.dtype in _HELD_IN:
        array = array.astype(_HELD_IN[tensor.dtype])
    if not (array.flags.writeable and array.flags.c_contiguous):
        array = np.array(array, order="C")
    if kind in _BITS:
        return torch.from_numpy(array.view(_BITS[kind])).view(kind)
    return torch.from_numpy(array)
