"""Rotary embedding moves into the attention op.

Before: q' = q * cos + rotate_half(q) * sin, the same for k, cos and sin computed from positions.
After: the op takes q and k as projected, and two tables cos, sin [positions, rotary_dim / 2].

The tables are made by running the graph's own computation of cos and sin over every position, so
that each kind of rope scaling is taken as the model has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from enginewright.builder.passes.match import constant, constant_value, other_input, producer
from enginewright.plugins.attention.contract import OP_TYPE


@dataclass(frozen=True)
class _Rotation:
    """x [B, heads, S, D] before rotary, and the values that it is multiplied with."""

    x: ir.Value
    cos: ir.Value
    sin: ir.Value


def fold_rotary(model: ir.Model, positions: int, takes: Callable[[int], bool]) -> None:
    """Fold rotary of every attention node whose q and k are rotated alike.

    ``positions`` is the length of the tables: the engine's max_context. ``takes(rotary_dim)`` says
    whether the target's attention can rotate that many dimensions.
    """
    tables = _Tables(model.graph, positions)
    for node in list(model.graph):
        if node.op_type != OP_TYPE:
            continue
        q, k = (_behind_layout(value) for value in node.inputs[:2])
        if q is None or k is None:
            continue
        rotated = _rotation(q.inputs[0]), _rotation(k.inputs[0])
        if rotated[0] is None or rotated[1] is None:
            continue
        if rotated[0].cos is not rotated[1].cos or rotated[0].sin is not rotated[1].sin:
            continue
        found = tables.of(rotated[0])
        if found is None:
            continue
        cos, sin = found
        if not takes(2 * cos.const_value.shape[1]):  # type: ignore[union-attr, operator]
            continue
        _fold(node, (q, k), (rotated[0].x, rotated[1].x), cos, sin)


def _fold(
    node: ir.Node,
    layouts: tuple[ir.Node, ir.Node],
    sources: tuple[ir.Value, ir.Value],
    cos: ir.Value,
    sin: ir.Value,
) -> None:
    for index, (layout, source) in enumerate(zip(layouts, sources, strict=True)):
        reshape = node.inputs[index].producer()  # type: ignore[union-attr]
        assert reshape is not None
        transposed = ir.node("Transpose", [source], {"perm": [0, 2, 1, 3]})
        transposed.outputs[0].shape = layout.outputs[0].shape
        transposed.outputs[0].type = layout.outputs[0].type
        flat = ir.node(
            "Reshape",
            [transposed.outputs[0], reshape.inputs[1]],
            {"allowzero": reshape.attributes["allowzero"].as_int()},
        )
        flat.outputs[0].shape = reshape.outputs[0].shape
        flat.outputs[0].type = reshape.outputs[0].type
        assert node.graph is not None
        node.graph.insert_before(node, [transposed, flat])
        node.replace_input_with(index, flat.outputs[0])
    node.resize_inputs(max(len(node.inputs), 10))
    node.replace_input_with(8, cos)
    node.replace_input_with(9, sin)
    assert cos.shape is not None
    half = cos.shape[1]
    assert isinstance(half, int)
    node.attributes["rotary_dim"] = ir.AttrInt64("rotary_dim", 2 * half)
    node.attributes["interleaved"] = ir.AttrInt64("interleaved", 0)


def _behind_layout(value: ir.Value | None) -> ir.Node | None:
    """The Transpose of Reshape(Transpose(x [B, heads, S, D]))."""
    reshape = producer(value, "Reshape")
    return producer(reshape.inputs[0], "Transpose") if reshape else None


def _rotation(value: ir.Value | None) -> _Rotation | None:
    """Match the rotation of the whole head, or of its first part with the rest passed through."""
    concat = producer(value, "Concat")
    if concat is not None and len(concat.inputs) == 2:
        inner, rest = _rotation(concat.inputs[0]), producer(concat.inputs[1], "Slice")
        first = producer(inner.x, "Slice") if inner else None
        if inner is None or rest is None or first is None or rest.inputs[0] is not first.inputs[0]:
            return None
        whole = first.inputs[0]
        assert whole is not None
        return _Rotation(whole, inner.cos, inner.sin)
    total = producer(value, "Add")
    if total is None:
        return None
    for straight, turned in (total.inputs, total.inputs[::-1]):
        match = _half_rotation(producer(straight, "Mul"), producer(turned, "Mul"))
        if match is not None:
            return match
    return None


def _half_rotation(straight: ir.Node | None, turned: ir.Node | None) -> _Rotation | None:
    """straight = x * cos, turned = Concat(Neg(x[half:]), x[:half]) * sin."""
    if straight is None or turned is None:
        return None
    for half in turned.inputs:
        concat = producer(half, "Concat")
        if concat is None or half is None:
            continue
        negated = producer(concat.inputs[0], "Neg")
        second = producer(negated.inputs[0], "Slice") if negated else None
        first = producer(concat.inputs[1], "Slice")
        if first is None or second is None or first.inputs[0] is not second.inputs[0]:
            continue
        x = first.inputs[0]
        assert x is not None
        cos, sin = other_input(straight, x), other_input(turned, half)
        if cos is not None and sin is not None and _splits_in_half(first, second):
            return _Rotation(x, cos, sin)
    return None


def _splits_in_half(first: ir.Node, second: ir.Node) -> bool:
    end, start = constant(first.inputs[2]), constant(second.inputs[1])
    x = first.inputs[0]
    assert x is not None
    assert x.shape is not None
    width = x.shape[-1]
    return end is not None and start is not None and int(end[0]) == int(start[0]) == width // 2


class _Tables:
    """cos and sin of every position, one pair of initializers for each kind of rope."""

    def __init__(self, graph: ir.Graph, positions: int) -> None:
        self._graph = graph
        self._positions = positions
        self._made: dict[tuple[int, int], tuple[ir.Value, ir.Value] | None] = {}

    def of(self, rotation: _Rotation) -> tuple[ir.Value, ir.Value] | None:
        key = id(rotation.cos), id(rotation.sin)
        if key not in self._made:
            self._made[key] = self._make(rotation, len(self._made))
        return self._made[key]

    def _make(self, rotation: _Rotation, number: int) -> tuple[ir.Value, ir.Value] | None:
        pair = []
        for kind, value in (("cos", rotation.cos), ("sin", rotation.sin)):
            table = _evaluate(value, self._positions)
            if table is None:
                return None
            pair.append(constant_value(self._graph, f"rotary.{number}.{kind}", table))
        return pair[0], pair[1]


def _evaluate(value: ir.Value, positions: int) -> NDArray[np.float32] | None:
    """Run what computes the value over every position; None unless both halves are equal."""
    nodes, stack, inputs = set[ir.Node](), [value], set[ir.Value]()
    while stack:
        current = stack.pop()
        node = current.producer()
        if node is None:
            if current.const_value is None:
                inputs.add(current)
        elif node not in nodes:
            nodes.add(node)
            stack.extend(operand for operand in node.inputs if operand is not None)
    if any(x.name not in ("positions", "input_ids", "past_lengths") for x in inputs):
        return None
    ids = np.arange(positions, dtype=np.int64)[None]
    feeds = {"positions": ids, "input_ids": ids, "past_lengths": np.zeros(1, np.int32)}
    wanted = {name: feeds[name] for x in inputs if (name := x.name) is not None}
    model = _subgraph(value, nodes, inputs)
    (table,) = ReferenceEvaluator(model).run(None, wanted)
    table = np.asarray(table, np.float32).reshape(positions, -1)
    half = table.shape[1] // 2
    if not np.array_equal(table[:, :half], table[:, half:]):
        return None
    return np.ascontiguousarray(table[:, :half])


def _subgraph(value: ir.Value, nodes: set[ir.Node], inputs: set[ir.Value]) -> onnx.ModelProto:
    graph = value.producer().graph  # type: ignore[union-attr]
    assert graph is not None
    constants: dict[str, ir.TensorProtocol] = {
        operand.name or "": operand.const_value
        for node in nodes
        for operand in node.inputs
        if operand is not None and operand.producer() is None and operand.const_value is not None
    }
    proto = onnx.helper.make_graph(
        [ir.to_proto(node) for node in graph if node in nodes],
        "rotary",
        [ir.to_proto(x) for x in sorted(inputs, key=lambda x: x.name or "")],
        [onnx.helper.make_tensor_value_info(value.name or "", onnx.TensorProto.FLOAT, None)],
        [
            onnx.numpy_helper.from_array(np.asarray(tensor.numpy()), name)
            for name, tensor in constants.items()
        ],
    )
    opset = graph.opset_imports.get("", 20)
    return onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", opset)])
