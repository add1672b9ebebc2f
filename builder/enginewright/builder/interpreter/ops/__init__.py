"""The ops that the interpreter knows: one function each, by domain and type."""

from __future__ import annotations

from collections.abc import Mapping

from enginewright.builder.interpreter.call import Op
from enginewright.builder.interpreter.ops import (
    attention,
    elementwise,
    linear,
    microsoft,
    microsoft_fused,
    norm,
    quantize,
    rotary,
    shape,
)

_TABLES = (
    attention,
    elementwise,
    linear,
    microsoft,
    microsoft_fused,
    norm,
    quantize,
    rotary,
    shape,
)
OPS: Mapping[tuple[str, str], Op] = {
    key: op for module in _TABLES for key, op in module.OPS.items()
}
