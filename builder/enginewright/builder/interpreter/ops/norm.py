"""Norms: computed in float32, rounded to the type of x, then scaled in the type of the scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from enginewright.builder.interpreter.call import Call, Op

MICROSOFT = "com.microsoft"


def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    return _normalized(call, x, centred=False).to(scale.dtype) * scale


def layer_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    y = _normalized(call, x, centred=True) * scale
    return y if bias is None else y + bias


def simplified_layer_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """ONNX Runtime's RMS norm, which scales before it rounds."""
    return (_wide(call, x, centred=False) * scale.float()).to(x.dtype)


def skip_simplified_layer_normalization(
    call: Call, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Sequence[Tensor]:
    """The norm of a sum, and in the fourth output the sum."""
    total = x + skip if bias is None else x + skip + bias
    empty = torch.empty(0)
    return simplified_layer_normalization(call, total, scale), empty, empty, total


def _normalized(call: Call, x: Tensor, *, centred: bool) -> Tensor:
    return _wide(call, x, centred=centred).to(x.dtype)


def _wide(call: Call, x: Tensor, *, centred: bool) -> Tensor:
    dims = list(range(call.get("axis", -1) % x.dim(), x.dim()))
    wide = x.float()
    if centred:
        wide = wide - wide.mean(dims, keepdim=True)
    power = wide.square().mean(dims, keepdim=True)
    return wide / torch.sqrt(power + call.get("epsilon", 1e-5))


OPS: Mapping[tuple[str, str], Op] = {
    ("", "RMSNormalization"): rms_normalization,
    ("", "LayerNormalization"): layer_normalization,
    ("", "SimplifiedLayerNormalization"): simplified_layer_normalization,
    (MICROSOFT, "SimplifiedLayerNormalization"): simplified_layer_normalization,
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): skip_simplified_layer_normalization,
}
