"""float32 values rounded to the type of a graph, to nearest, ties to even, beyond it saturated."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor

from enginewright.builder.interpreter.tensors import torch_type

INTEGER_RANGES = {
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
}
E4M3_MAX = 448.0
E2M1_MAX = 6.0


def round_to(x: Tensor, dtype: ir.DataType) -> Tensor:
    """float32 ``x`` in the type ``dtype``."""
    if dtype in INTEGER_RANGES:
        low, high = INTEGER_RANGES[dtype]
        return x.round().clamp(low, high).to(torch_type(dtype))
    if dtype == ir.DataType.FLOAT8E4M3FN:
        return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    if dtype == ir.DataType.FLOAT4E2M1:
        return _to_e2m1(x).to(torch.float8_e4m3fn)
    return x.to(torch_type(dtype))


def _to_e2m1(x: Tensor) -> Tensor:
    """Steps of 0.5 below 2, of 1 below 4, of 2 up to 6."""
    size = x.abs().clamp(max=E2M1_MAX)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign((size / step).round() * step, x)
