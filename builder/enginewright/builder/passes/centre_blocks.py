"""Blocks for operators whose zero is the middle code and whose scales are float32.

scale * (code - zero) + offset = scale * (code - middle) + (scale * (middle - zero) + offset). The
nodes made here read initializers alone, so that a runtime computes them once, when it loads.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from enginewright.builder.block_tensor import BlockForm
from enginewright.builder.passes.match import constant_value, declare


def float32(value: ir.Value) -> ir.Node:
    """The value as float32."""
    node = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
    node.outputs[0].shape = value.shape
    node.outputs[0].dtype = ir.DataType.FLOAT
    return node


def centred_offsets(
    graph: ir.Graph, form: BlockForm, scales: ir.Value, offsets: ir.Value | None
) -> tuple[list[ir.Node], ir.Value | None]:
    """Nodes, and their value [N, K / block]: the offsets beside the middle; None where all are 0.

    ``scales`` are float32.
    """
    nodes: list[ir.Node] = []
    if offsets is not None:
        nodes.append(float32(offsets))
    shift = 0 if form.zero_points else (1 << (form.bits - 1)) - form.zero
    if shift:
        factor = constant_value(graph, f"shift_{shift}", np.array(shift, np.float32))
        nodes.append(ir.node("Mul", [scales, factor]))
        if offsets is not None:
            nodes.append(ir.node("Add", [nodes[0].outputs[0], nodes[1].outputs[0]]))
    for node in nodes:
        declare(node.outputs[0], ir.DataType.FLOAT, scales.shape)
    return nodes, nodes[-1].outputs[0] if nodes else None


def keep_axes(graph: ir.Graph, value: ir.Value, leading: int, trailing: list[int]) -> ir.Node:
    """Reshape: keep the leading axes (0 in Reshape), put the others in their place."""
    name = "_".join(map(str, ["keep", leading, *trailing]))
    shape = np.array([0] * leading + trailing, np.int64)
    node = ir.node("Reshape", [value, constant_value(graph, name, shape)])
    declare(node.outputs[0], value.dtype)
    return node
