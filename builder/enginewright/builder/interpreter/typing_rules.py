"""Whether a node's operands have the types that they must: nothing is promoted, as in TensorRT.

Standard ops are held to ONNX's own schemas, in which operands that share a type parameter have the
same type; where TensorRT asks for more, ``_ALIKE`` says so. For other domains ``_ALIKE`` is all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from enginewright.builder.interpreter.call import Call

_ALIKE: dict[tuple[str, str], tuple[tuple[int, ...], ...]] = {
    ("", "Pow"): ((0, 1),),
    ("", "LayerNormalization"): ((0, 1, 2),),
    ("trt", "TRT_Attention"): ((0, 1, 2),),
    ("enginewright", "EnginewrightCachedAttention"): ((0, 1, 2), (3, 4), (5, 6, 7)),
    ("com.microsoft", "GroupQueryAttention"): ((0, 1, 2, 3, 4, 7, 8),),
    ("com.microsoft", "MatMulNBits"): ((0, 2),),
    ("com.microsoft", "FusedMatMul"): ((0, 1),),
    ("com.microsoft", "SkipLayerNormalization"): ((0, 1, 2, 3, 4),),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): ((0, 1, 2, 3),),
}
"""Inputs, by index, that have one type."""

_NAMES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float",
    torch.float64: "double",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.bool: "bool",
    torch.float8_e4m3fn: "float8e4m3fn",
}


@dataclass(frozen=True)
class _Parameter:
    """What one operand is declared as: the parameter's name, and the types that it may have."""

    name: str
    legal: frozenset[str]


def check_types(call: Call, operands: Sequence[Tensor | None], opset: int) -> None:
    """Raise GraphError for operands of types that may not meet."""
    node = call.node
    for group in _ALIKE.get((node.domain, node.op_type), ()):
        _check_alike(call, operands, group)
    if node.domain or not onnx.defs.has(node.op_type, opset):
        return
    declared = _parameters(onnx.defs.get_schema(node.op_type, opset), len(operands))
    groups: dict[str, list[int]] = {}
    for index, (parameter, operand) in enumerate(zip(declared, operands, strict=False)):
        if operand is None or parameter is None:
            continue
        found = f"tensor({_NAMES[operand.dtype]})"
        if found not in parameter.legal:
            raise call.error(
                f"input {index} is {_NAMES[operand.dtype]}; legal: {', '.join(_legal(parameter))}"
            )
        groups.setdefault(parameter.name, []).append(index)
    for indices in groups.values():
        _check_alike(call, operands, indices)


def _check_alike(call: Call, operands: Sequence[Tensor | None], group: Sequence[int]) -> None:
    given = [(at, operands[at]) for at in group if at < len(operands)]
    found = {at: _NAMES[operand.dtype] for at, operand in given if operand is not None}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"input {at} is {name}" for at, name in found.items())
        raise call.error(f"{listed}; they must have one type, nothing is converted on the way")


def _parameters(schema: onnx.defs.OpSchema, count: int) -> list[_Parameter | None]:
    """What each of so many inputs is declared as; None where anything goes."""
    kinds = onnx.defs.OpSchema.FormalParameterOption
    declared: list[_Parameter | None] = []
    for formal in schema.inputs:
        parameter = _Parameter(formal.type_str, frozenset(formal.types) | _held(formal.types))
        if formal.option == kinds.Variadic:
            rest = parameter if formal.is_homogeneous else None
            return declared + [rest] * (count - len(declared))
        declared.append(parameter)
    return declared


def _held(types: set[str]) -> set[str]:
    """The types of torch that stand for those of 4 bits, see tensors.py."""
    stands = {
        "tensor(int4)": "tensor(int8)",
        "tensor(uint4)": "tensor(uint8)",
        "tensor(float4e2m1)": "tensor(float8e4m3fn)",
    }
    return {stands[name] for name in types if name in stands}


def _legal(parameter: _Parameter) -> list[str]:
    return sorted(name.removeprefix("tensor(").removesuffix(")") for name in parameter.legal)
