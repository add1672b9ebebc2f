"""Ops on each element by itself. torch computes those of 16 bits in float32 and rounds once."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from enginewright.builder.interpreter.call import Call, Op
from enginewright.builder.interpreter.ops.rounding import round_to
from enginewright.builder.interpreter.tensors import torch_type


def add(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a + b


def sub(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a - b


def mul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a * b


def div(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def power(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


def maximum(call: Call, *operands: Tensor) -> Tensor:
    result = operands[0]
    for operand in operands[1:]:
        result = torch.maximum(result, operand)
    return result


def minimum(call: Call, *operands: Tensor) -> Tensor:
    result = operands[0]
    for operand in operands[1:]:
        result = torch.minimum(result, operand)
    return result


def neg(call: Call, x: Tensor) -> Tensor:
    return -x


def absolute(call: Call, x: Tensor) -> Tensor:
    return x.abs()


def sqrt(call: Call, x: Tensor) -> Tensor:
    return x.sqrt()


def reciprocal(call: Call, x: Tensor) -> Tensor:
    return x.reciprocal()


def exp(call: Call, x: Tensor) -> Tensor:
    return x.exp()


def log(call: Call, x: Tensor) -> Tensor:
    return x.log()


def erf(call: Call, x: Tensor) -> Tensor:
    return x.erf()


def cos(call: Call, x: Tensor) -> Tensor:
    return x.cos()


def sin(call: Call, x: Tensor) -> Tensor:
    return x.sin()


def rounded(call: Call, x: Tensor) -> Tensor:
    return x.round()


def tanh(call: Call, x: Tensor) -> Tensor:
    return x.tanh()


def sigmoid(call: Call, x: Tensor) -> Tensor:
    return x.sigmoid()


def relu(call: Call, x: Tensor) -> Tensor:
    return x.relu()


def gelu(call: Call, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=call.get("approximate", "none"))


def swish(call: Call, x: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.sigmoid(call.get("alpha", 1.0) * wide)).to(x.dtype)


def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def cast(call: Call, x: Tensor) -> Tensor:
    return _cast(x, torch_type(ir.DataType(call.get("to"))), call)


def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    return _cast(x, like.dtype, call)


def _cast(x: Tensor, kind: torch.dtype, call: Call) -> Tensor:
    if kind == torch.float8_e4m3fn and call.get("saturate", 1):
        return round_to(x.float(), ir.DataType.FLOAT8E4M3FN)
    return x.to(kind)


def where(call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


def equal(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a == b


def less(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a < b


def less_or_equal(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a <= b


def greater(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a > b


def greater_or_equal(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a >= b


def both(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a & b


def either(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a | b


def invert(call: Call, x: Tensor) -> Tensor:
    return ~x


OPS: Mapping[tuple[str, str], Op] = {
    ("", "Add"): add,
    ("", "Sub"): sub,
    ("", "Mul"): mul,
    ("", "Div"): div,
    ("", "Pow"): power,
    ("", "Mod"): mod,
    ("", "Max"): maximum,
    ("", "Min"): minimum,
    ("", "Neg"): neg,
    ("", "Abs"): absolute,
    ("", "Sqrt"): sqrt,
    ("", "Reciprocal"): reciprocal,
    ("", "Exp"): exp,
    ("", "Log"): log,
    ("", "Erf"): erf,
    ("", "Cos"): cos,
    ("", "Sin"): sin,
    ("", "Round"): rounded,
    ("", "Tanh"): tanh,
    ("", "Sigmoid"): sigmoid,
    ("", "Relu"): relu,
    ("", "Gelu"): gelu,
    ("", "Swish"): swish,
    ("", "Clip"): clip,
    ("", "Cast"): cast,
    ("", "CastLike"): cast_like,
    ("", "Where"): where,
    ("", "Equal"): equal,
    ("", "Less"): less,
    ("", "LessOrEqual"): less_or_equal,
    ("", "Greater"): greater,
    ("", "GreaterOrEqual"): greater_or_equal,
    ("", "And"): both,
    ("", "Or"): either,
    ("", "Not"): invert,
}
