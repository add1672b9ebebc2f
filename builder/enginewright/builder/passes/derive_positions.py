"""The input ``positions`` is computed from the lengths where something still reads it.

Before: an input positions [B, S].
After: past_lengths[:, None] + Range(S), or nothing where rotary was its only reader. ``counted``:
the second term is a sum of ones along S, for devices that would have to ask a host for S.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from enginewright.builder.passes.match import constant_value, declare


def derive_positions(model: ir.Model, *, counted: bool = False) -> None:
    """Remove the input, with a computation in its place if it is read."""
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    positions = inputs["positions"]
    if positions.uses():
        past = ir.node("Cast", [inputs["past_lengths"]], {"to": ir.DataType.INT64.value})
        column = ir.node(
            "Unsqueeze", [past.outputs[0], constant_value(graph, "one_axis", np.array([1]))]
        )
        offsets = (_counted if counted else _range)(graph, inputs["input_ids"])
        derived = ir.node("Add", [column.outputs[0], offsets[-1].outputs[0]])
        nodes = [past, column, *offsets, derived]
        for node in nodes:
            declare(node.outputs[0], ir.DataType.INT64)
        derived.outputs[0].shape = positions.shape
        graph.insert_before(graph[0], nodes)
        ir.convenience.replace_all_uses_with(positions, derived.outputs[0])
    graph.inputs.remove(positions)


def _range(graph: ir.Graph, ids: ir.Value) -> list[ir.Node]:
    """0 to S - 1, from the shape of [B, S]."""
    length = ir.node("Shape", [ids], {"start": 1, "end": 2})
    size = ir.node(
        "Squeeze", [length.outputs[0], constant_value(graph, "zero_axis", np.array([0]))]
    )
    zero = constant_value(graph, "range_start", np.array(0, np.int64))
    step = constant_value(graph, "range_step", np.array(1, np.int64))
    return [length, size, ir.node("Range", [zero, size.outputs[0], step])]


def _counted(graph: ir.Graph, ids: ir.Value) -> list[ir.Node]:
    """The same for every row, [B, S]: how many ones stand before each."""
    one = constant_value(graph, "one_int64", np.array(1))
    axis = constant_value(graph, "sequence_axis", np.array(1, np.int64))
    zeros = ir.node("Sub", [ids, ids])
    ones = ir.node("Add", [zeros.outputs[0], one])
    through = ir.node("CumSum", [ones.outputs[0], axis])
    return [zeros, ones, through, ir.node("Sub", [through.outputs[0], one])]
