"""GELU by tanh becomes one node.

Before: 0.5 x (1 + Tanh(sqrt(2 / pi) (x + 0.044715 x^3))), as GPT-2 has it, in eight nodes.
After: Gelu(x) with approximate = "tanh", which a target computes in float32 inside.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from enginewright.builder.passes.match import (
    consumers,
    insert_before,
    other_input,
    producer,
    replace,
    scalar,
)

_TOLERANCE = 1e-4


def fuse_gelu(model: ir.Model) -> None:
    """Fuse every occurrence; the graph's opset has to have Gelu, so 20 at least."""
    for node in list(model.graph):
        if node.op_type != "Tanh" or (x := _cubic_source(node.inputs[0])) is None:
            continue
        for last in _products(node.outputs[0], x):
            fused = ir.node("Gelu", [x], {"approximate": "tanh"})
            insert_before(last, [fused])
            replace(last.outputs, fused.outputs)


def _cubic_source(value: ir.Value | None) -> ir.Value | None:
    """x of sqrt(2 / pi) (x + 0.044715 x^3)."""
    inner = _scaled(value, math.sqrt(2 / math.pi))
    total = producer(inner, "Add")
    if total is None:
        return None
    for x, cubic in (total.inputs, total.inputs[::-1]):
        power = producer(_scaled(cubic, 0.044715), "Pow")
        if power is not None and power.inputs[0] is x and scalar(power.inputs[1]) == 3.0:
            return x
    return None


def _products(tanh: ir.Value, x: ir.Value) -> list[ir.Node]:
    """The nodes that make 0.5 x (1 + tanh)."""
    return [
        last
        for total in consumers(tanh, "Add")
        if _is(other_input(total, tanh), 1.0)
        for last in consumers(total.outputs[0], "Mul")
        if _scaled(other_input(last, total.outputs[0]), 0.5) is x
    ]


def _scaled(value: ir.Value | None, factor: float) -> ir.Value | None:
    """What the value is the product of with that constant."""
    product = producer(value, "Mul")
    if product is None:
        return None
    for operand, constant in (product.inputs, product.inputs[::-1]):
        if _is(constant, factor):
            return operand
    return None


def _is(value: ir.Value | None, number: float) -> bool:
    found = scalar(value)
    return found is not None and math.isclose(found, number, rel_tol=_TOLERANCE)
