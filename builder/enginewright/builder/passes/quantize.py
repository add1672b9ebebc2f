"""Linear and the token embedding, in the precision asked for.

Before: y = Linear(x, W [N, K], bias); e = Gather(E, input_ids).
After:
- fp32: y = FusedMatMul(x, W, transB=1) + bias; the embedding stays.
- int8, int4: y = BlockLinear(x, codes, scales, zero_points?, offsets?, bias?), which a target runs
  or lowers; e = GatherBlockQuantized(table, input_ids, scales, zero_points?) over the bytes of a
  tied head, with offsets e + offsets by block.

Blocks that the source stores are used as they stand. What else there is, is rounded: to int8 under
int8; under int4 to int4, but to int8 the embedding, the head, and whatever a source that has
4-bit matrices itself keeps in more bits. A matrix whose K is no multiple of 16 stays in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from enginewright.builder import linear
from enginewright.builder.block_tensor import BlockTensor
from enginewright.builder.passes.centre_blocks import centred_offsets, float32, keep_axes
from enginewright.builder.passes.match import (
    MICROSOFT,
    constant_value,
    declare,
    initializer,
    insert_before,
    replace,
)
from enginewright.builder.quantization import Note
from enginewright.builder.stored_blocks import Matrix, Storage
from enginewright.builder.weight_tensor import weight_of
from enginewright.plugins.block_linear import contract

PRECISIONS = ("fp32", "int8", "int4")


def quantize(model: ir.Model, precision: str, note: Note | None = None) -> None:
    """Lower every Linear, and the embedding where the precision is not fp32.

    ``note`` hears of each matrix in blocks, when it is written.
    """
    assert precision in PRECISIONS
    graph = model.graph
    linears = [node for node in graph if node.op_type == linear.OP_TYPE]
    graph.opset_imports.setdefault(MICROSOFT, 1)
    graph.opset_imports.setdefault(contract.DOMAIN, contract.ABI_VERSION)
    if precision == "fp32":
        for node in linears:
            _swap(node, _fp32(node))
        return
    head = head_of(graph.outputs[0])
    layers = [weight_of(node.inputs[1]) for node in linears if node is not head]
    storage = Storage(precision, [weight for weight in layers if weight is not None], note)
    lowering = _Lowering(graph, storage)
    for node in [node for node in graph if node.op_type == "Gather"]:
        lowering.embedding(node)
    for node in linears:
        lowering.linear(node, is_head=node is head)


def head_of(logits: ir.Value) -> ir.Node | None:
    """The last Linear before the logits; elementwise nodes may follow it."""
    node = logits.producer()
    while node is not None and node.op_type != linear.OP_TYPE:
        chain = [value for value in node.inputs if value is not None and value.const_value is None]
        node = chain[0].producer() if chain else None
    return node


def _fp32(node: ir.Node) -> list[ir.Node]:
    """The fastest exact form: constant weights are repacked at load, whichever way they lie."""
    x, weight, *bias = node.inputs
    nodes = [ir.node("FusedMatMul", [x, weight], {"transB": 1}, domain=MICROSOFT)]
    if bias:
        nodes.append(ir.node("Add", [nodes[0].outputs[0], bias[0]]))
    return nodes


def _swap(node: ir.Node, nodes: Sequence[ir.Node]) -> None:
    """Put the nodes in the place of one; the last one's output is the result."""
    graph, operands = node.graph, node.inputs
    assert graph is not None
    insert_before(node, nodes)
    replace(node.outputs, nodes[-1].outputs)
    graph.remove(node, safe=True)
    for value in operands:
        if value is not None and value.is_initializer() and not value.uses():
            del graph.initializers[value.name or ""]


class _Lowering:
    """What nodes share while a graph is lowered: the initializers of a matrix."""

    def __init__(self, graph: ir.Graph, storage: Storage) -> None:
        self._graph = graph
        self._storage = storage
        self._values: dict[tuple[int, str], ir.Value] = {}

    def linear(self, node: ir.Node, *, is_head: bool) -> None:
        value = node.inputs[1]
        weight = weight_of(value)
        assert value is not None
        name = value.name or ""
        stored: tuple[Matrix, ...] = ()
        if weight is not None and is_head:
            stored = self._storage.of_vocabulary(weight, name)
        elif weight is not None:
            stored = self._storage.of_layer(weight, name)
        bias = node.inputs[2] if len(node.inputs) == 3 else None
        if not stored:
            nodes = _fp32(node)
        elif len(stored) == 1:
            nodes = self._product(node, stored[0], name, bias)
        else:
            nodes = self._stacked(node, stored, name, bias)
        _swap(node, nodes)

    def embedding(self, node: ir.Node) -> None:
        """Only the tokens' table: one of positions is small, and read by the row as well."""
        table, ids = node.inputs
        weight = weight_of(table)
        if table is None or ids is None or weight is None or not ids.is_graph_input():
            return
        name = table.name or ""
        stored = self._storage.of_vocabulary(weight, name)
        if len(stored) == 1 and stored[0].order is None:
            _swap(node, self._gathered(stored[0], name, ids))

    def _gathered(self, matrix: Matrix, name: str, ids: ir.Value) -> list[ir.Node]:
        form = matrix.lazy.form
        scales = float32(self._part(matrix, "scales", name))
        operands = [self._part(matrix, "table", name), ids, scales.outputs[0]]
        if form.zero_points:
            operands.append(self._part(matrix, "zero_points", name))
        attributes = {"bits": form.bits, "block_size": form.block_size}
        attributes |= {"gather_axis": 0, "quantize_axis": 1}
        gathered = ir.node("GatherBlockQuantized", operands, attributes, domain=MICROSOFT)
        offsets = self._part(matrix, "offsets", name) if form.offsets else None
        nodes, added = centred_offsets(self._graph, form, scales.outputs[0], offsets)
        if added is None:
            return [scales, gathered]
        assert ids.shape is not None
        rank, blocks = len(ids.shape), [form.blocks, form.block_size]
        nodes = [scales, gathered, *nodes, ir.node("Gather", [added, ids], {"axis": 0})]
        last = constant_value(self._graph, "last_axis", np.array([-1], np.int64))
        nodes.append(ir.node("Unsqueeze", [nodes[-1].outputs[0], last]))
        nodes.append(keep_axes(self._graph, gathered.outputs[0], rank, blocks))
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], nodes[-2].outputs[0]]))
        nodes.append(keep_axes(self._graph, nodes[-1].outputs[0], rank, [form.inputs]))
        for node in nodes:
            declare(node.outputs[0], ir.DataType.FLOAT)
        return nodes

    def _stacked(
        self, node: ir.Node, stored: Sequence[Matrix], name: str, bias: ir.Value | None
    ) -> list[ir.Node]:
        nodes: list[ir.Node] = []
        parts = []
        for index, matrix in enumerate(stored):
            nodes += self._product(node, matrix, f"{name}.{index}", None)
            parts.append(nodes[-1].outputs[0])
        nodes.append(ir.node("Concat", parts, {"axis": -1}))
        if bias is not None:
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias]))
        return nodes

    def _product(
        self, node: ir.Node, matrix: Matrix, name: str, bias: ir.Value | None
    ) -> list[ir.Node]:
        x = node.inputs[0]
        assert x is not None
        form, nodes = matrix.lazy.form, []
        if matrix.order is not None:
            order = constant_value(self._graph, f"{name}.order", matrix.order.astype(np.int64))
            nodes.append(ir.node("Gather", [x, order], {"axis": -1}))
            nodes[0].outputs[0].shape = x.shape
            x = nodes[0].outputs[0]
        parts: list[ir.Value | None] = [
            self._part(matrix, part, name) if present else None
            for part, present in (
                ("codes", True),
                ("scales", True),
                ("zero_points", form.zero_points),
                ("offsets", form.offsets),
            )
        ]
        operands = [x, *parts, bias]
        while operands[-1] is None:
            operands.pop()
        attributes = {"N": form.rows, "K": form.inputs, "bits": form.bits}
        attributes |= {"block_size": form.block_size, "zero": form.zero}
        nodes.append(ir.node(contract.OP_TYPE, operands, attributes, domain=contract.DOMAIN))
        return nodes

    def _part(self, matrix: Matrix, part: str, name: str) -> ir.Value:
        """The initializer of one part; shared by all that read this matrix."""
        key = (id(matrix.lazy), part)
        if key not in self._values:
            tensor = BlockTensor(matrix.lazy, part, f"{name}.{part}")
            self._values[key] = initializer(self._graph, tensor)
        return self._values[key]
