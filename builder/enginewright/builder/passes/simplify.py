"""Fold constants, merge equal nodes, cancel layout changes, drop what nothing reads.

Before: Transpose(Transpose(x)) by inverse permutations, Reshape back to the shape of before.
After: x.
Before: Reshape(x [B, S, 64], Concat(Shape(..), [4], [16])).
After: Reshape(x, [0, 0, 4, 16]).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from enginewright.builder.passes.match import (
    constant,
    constant_value,
    producer,
    replace,
    same_shape,
)

# Constants up to this many bytes are folded; weights are larger and stay where they are.
_FOLD_BYTES = 1024


def simplify(model: ir.Model) -> None:
    """Run the clean-ups until none of them finds anything."""
    optimizer.fold_constants(
        model,
        input_size_limit=_FOLD_BYTES,
        output_size_limit=_FOLD_BYTES,
        onnx_shape_inference=False,
    )
    common.CommonSubexpressionEliminationPass()(model)
    while _cancel_layout(model.graph) or _constant_shapes(model.graph):
        common.RemoveUnusedNodesPass()(model)
        common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)


def _cancel_layout(graph: ir.Graph) -> bool:
    changed = False
    for node in list(graph):
        source = _undone(node)
        if source is not None:
            replace(node.outputs, [source])
            changed = True
    return changed


def _undone(node: ir.Node) -> ir.Value | None:
    """The earlier value that this node recreates, or None."""
    before = node.inputs[0] if node.inputs else None
    if before is None:
        return None
    if node.op_type == "Identity":
        return before
    if node.op_type == "Transpose" and (first := producer(before, "Transpose")) is not None:
        inner, outer = _permutation(first), _permutation(node)
        if [inner[axis] for axis in outer] == list(range(len(outer))):
            return first.inputs[0]
    if node.op_type == "Reshape":
        return _reshape_source(node, before)
    if node.op_type == "Slice" and same_shape(before, node.outputs[0]):
        return before
    return None


def _reshape_source(node: ir.Node, before: ir.Value) -> ir.Value | None:
    if same_shape(before, node.outputs[0]):
        return before
    first = producer(before, "Reshape")
    if first is None or first.inputs[0] is None:
        return None
    if same_shape(first.inputs[0], node.outputs[0]):
        return first.inputs[0]
    if _keeps_meaning(node, first.inputs[0]):
        node.replace_input_with(0, first.inputs[0])
    return None


def _keeps_meaning(node: ir.Node, source: ir.Value) -> bool:
    """The target shape means the same over another source: no 0 in it refers to another size."""
    numbers, target = constant(node.inputs[1]), node.outputs[0].shape
    if numbers is None:
        return True
    if source.shape is None or target is None:
        return False
    zeros = [axis for axis, number in enumerate(numbers) if number == 0]
    return all(axis < len(source.shape) and source.shape[axis] == target[axis] for axis in zeros)


def _constant_shapes(graph: ir.Graph) -> bool:
    """Target shapes that are computed from sizes of the batch become constants with 0 and -1."""
    changed = False
    for node in list(graph):
        if node.op_type != "Reshape" or node.inputs[1] is None:
            continue
        target = _relative_shape(node)
        if target is None or ir.convenience.get_const_tensor(node.inputs[1]) is not None:
            continue
        name = "shape." + "_".join(map(str, target))
        node.replace_input_with(1, constant_value(graph, name, np.array(target, np.int64)))
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
        changed = True
    return changed


def _relative_shape(node: ir.Node) -> list[int] | None:
    """The target as numbers, 0 where the input's size is kept, -1 once; else None."""
    source, target = node.inputs[0], node.outputs[0].shape
    if source is None or source.shape is None or target is None:
        return None
    numbers = []
    for axis, size in enumerate(target):
        if isinstance(size, int):
            numbers.append(size)
        else:
            kept = axis < len(source.shape) and source.shape[axis] == size
            numbers.append(0 if kept else -1)
    return numbers if numbers.count(-1) <= 1 else None


def _permutation(node: ir.Node) -> list[int]:
    return list(node.attributes["perm"].as_ints())
