"""RMS norms become one node.

Before: Mul(w, Mul(x, Reciprocal(Sqrt(Add(ReduceMean(Pow(x, 2)), eps))))), or with (1 + w).
After: SimplifiedLayerNormalization(x, w), with 1 + w computed once for Gemma's norms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from enginewright.builder.passes.match import (
    constant,
    consumers,
    insert_before,
    other_input,
    producer,
    replace,
    scalar,
)
from enginewright.builder.weight_tensor import initializer, weight_of
from enginewright.builder.weights import ArrayWeight


@dataclass(frozen=True)
class _Match:
    x: ir.Value
    weight: ir.Value
    epsilon: float
    last: ir.Node


def fuse_norm(model: ir.Model) -> None:
    """Replace every RMS norm over the last axis."""
    for node in list(model.graph):
        if node.op_type == "Reciprocal" and (match := _match(model.graph, node)) is not None:
            fused = ir.node(
                "SimplifiedLayerNormalization",
                [match.x, match.weight],
                {"axis": -1, "epsilon": match.epsilon, "stash_type": 1},
            )
            insert_before(match.last, [fused])
            replace(match.last.outputs, fused.outputs)


def _match(graph: ir.Graph, reciprocal: ir.Node) -> _Match | None:
    found = _mean_of_squares(reciprocal)
    if found is None:
        return None
    x, epsilon = found
    for scaled in consumers(reciprocal.outputs[0], "Mul"):
        if other_input(scaled, reciprocal.outputs[0]) is not x:
            continue
        for last in consumers(scaled.outputs[0], "Mul"):
            weight = _norm_weight(graph, other_input(last, scaled.outputs[0]))
            if weight is not None:
                return _Match(x, weight, epsilon, last)
    return None


def _mean_of_squares(reciprocal: ir.Node) -> tuple[ir.Value, float] | None:
    root = producer(reciprocal.inputs[0], "Sqrt")
    total = producer(root.inputs[0], "Add") if root else None
    if total is None:
        return None
    for mean_value, epsilon_value in (total.inputs, total.inputs[::-1]):
        mean, epsilon = producer(mean_value, "ReduceMean"), scalar(epsilon_value)
        square = producer(mean.inputs[0], "Pow") if mean else None
        if mean is None or square is None or epsilon is None or scalar(mean.inputs[1]) != -1:
            continue  # only a mean over the last axis is a norm
        if scalar(square.inputs[1]) == 2.0:
            assert square.inputs[0] is not None
            return square.inputs[0], epsilon
    return None


def _is_vector(value: ir.Value) -> bool:
    array = constant(value)
    return array is not None and array.ndim == 1


def _norm_weight(graph: ir.Graph, value: ir.Value | None) -> ir.Value | None:
    """An initializer that holds the norm's weight, 1 + w folded into a new one."""
    if value is None:
        return None
    if weight_of(value) is not None or _is_vector(value):
        return value
    total = producer(value, "Add")
    if total is None:
        return None
    for stored, one in (total.inputs, total.inputs[::-1]):
        weight = weight_of(stored)
        if weight is not None and stored is not None and scalar(one) == 1.0:
            values = np.float32(1) + weight.numpy()
            return initializer(graph, f"{stored.name}.plus_one", ArrayWeight(values))
    return None
