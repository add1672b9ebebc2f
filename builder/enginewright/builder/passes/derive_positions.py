"""The input ``positions`` is computed from the lengths where something still reads it.

Before: an input positions [B, S].
After: past_lengths[:, None] + Range(S), or nothing where rotary was its only reader.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from enginewright.builder.passes.match import constant_value


def derive_positions(model: ir.Model) -> None:
    """Remove the input, with a computation in its place if it is read."""
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    positions = inputs["positions"]
    if positions.uses():
        past = ir.node("Cast", [inputs["past_lengths"]], {"to": ir.DataType.INT64.value})
        column = ir.node(
            "Unsqueeze", [past.outputs[0], constant_value(graph, "one_axis", np.array([1]))]
        )
        length = ir.node("Shape", [inputs["input_ids"]], {"start": 1, "end": 2})
        size = ir.node(
            "Squeeze", [length.outputs[0], constant_value(graph, "zero_axis", np.array([0]))]
        )
        zero = constant_value(graph, "range_start", np.array(0, np.int64))
        step = constant_value(graph, "range_step", np.array(1, np.int64))
        offsets = ir.node("Range", [zero, size.outputs[0], step])
        derived = ir.node("Add", [column.outputs[0], offsets.outputs[0]])
        derived.outputs[0].shape, derived.outputs[0].type = positions.shape, positions.type
        graph.insert_before(graph[0], [past, column, length, size, offsets, derived])
        ir.convenience.replace_all_uses_with(positions, derived.outputs[0])
    graph.inputs.remove(positions)
