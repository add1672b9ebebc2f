"""Ops of ONNX Runtime's domain that stand for a few standard ones, rounded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from enginewright.builder.interpreter.call import Call, Op
from enginewright.builder.interpreter.ops.microsoft import MICROSOFT
from enginewright.builder.interpreter.ops.norm import layer_normalization


def fused_matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """A product over the last axes, each operand transposed before if its flag says so."""
    wide_a, wide_b = call.wide(0, a), call.wide(1, b)
    wide_a = wide_a.mT if call.get("transA", 0) else wide_a
    wide_b = wide_b.mT if call.get("transB", 0) else wide_b
    product: Tensor = torch.matmul(wide_a, wide_b) * call.get("alpha", 1.0)
    return product.to(a.dtype)


def quick_gelu(call: Call, x: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.sigmoid(call.get("alpha", 1.702) * wide)).to(x.dtype)


def skip_layer_normalization(
    call: Call,
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    bias: Tensor | None = None,
) -> Sequence[Tensor]:
    """The norm of a sum, and in the fourth output the sum."""
    total = x + skip if bias is None else x + skip + bias
    wide = [None if part is None else part.float() for part in (total, scale, shift)]
    normal = layer_normalization(call, *wide).to(x.dtype)  # type: ignore[arg-type]
    empty = torch.empty(0)
    return normal, empty, empty, total


OPS: Mapping[tuple[str, str], Op] = {
    (MICROSOFT, "FusedMatMul"): fused_matmul,
    (MICROSOFT, "QuickGelu"): quick_gelu,
    (MICROSOFT, "SkipLayerNormalization"): skip_layer_normalization,
}
