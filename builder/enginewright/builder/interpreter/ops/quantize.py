"""Rounding to few bits and back; products and quotients in float32, rounded once.

| granularity | shape of the scale                                    |
|-------------|-------------------------------------------------------|
| tensor      | []                                                    |
| axis        | [D_axis]                                              |
| block       | as x, along ``axis`` divided by ``block_size``        |
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch
from torch import Tensor

from enginewright.builder.interpreter.call import Call, Op
from enginewright.builder.interpreter.ops.rounding import round_to
from enginewright.builder.interpreter.tensors import torch_type


def quantize_linear(
    call: Call, x: Tensor, scale: Tensor, zero_point: Tensor | None = None
) -> Tensor:
    scaled = x.float() / _spread(call, scale, x)
    if zero_point is not None:
        scaled = scaled.round() + _spread(call, zero_point, x)
    return round_to(scaled, _quantized_type(call))


def dequantize_linear(
    call: Call, x: Tensor, scale: Tensor, zero_point: Tensor | None = None
) -> Tensor:
    wide = x.float()
    if zero_point is not None:
        wide = wide - _spread(call, zero_point, x)
    given = call.get("output_dtype", 0)
    kind = torch_type(ir.DataType(given)) if given else scale.dtype
    return (wide * _spread(call, scale, x)).to(kind)


def _quantized_type(call: Call) -> ir.DataType:
    """That of the zero point, where there is one; else the attribute's; else uint8."""
    if len(call.node.inputs) > 2 and call.node.inputs[2] is not None:
        dtype = call.node.inputs[2].dtype
        assert dtype is not None, "an initializer has a type"
        return dtype
    return ir.DataType(call.get("output_dtype", 0) or ir.DataType.UINT8)


def _spread(call: Call, scale: Tensor, x: Tensor) -> Tensor:
    """float32 scales or zero points as x can be multiplied with them; see the module's table."""
    wide = scale.float()
    if scale.numel() == 1 and not call.get("block_size", 0):
        return wide.reshape(())
    axis = call.get("axis", 1) % x.dim()
    size = call.get("block_size", 0)
    if size:
        spread = torch.repeat_interleave(wide, size, dim=axis).narrow(axis, 0, x.shape[axis])
        if spread.shape != x.shape:
            raise call.error(f"scales {list(scale.shape)} in blocks of {size} of {list(x.shape)}")
        return spread
    if scale.shape != (x.shape[axis],):
        raise call.error(f"scales {list(scale.shape)} for axis {axis} of {list(x.shape)}")
    return wide.reshape([-1 if at == axis else 1 for at in range(x.dim())])


OPS: Mapping[tuple[str, str], Op] = {
    ("", "QuantizeLinear"): quantize_linear,
    ("", "DequantizeLinear"): dequantize_linear,
}
