"""Linear and the token embedding, lowered to the precision asked for.

Before: y = Linear(x, W [N, K], bias); e = Gather(E, input_ids).
After:
- fp32: y = FusedMatMul(x, W, transB=1) + bias; the embedding stays.
- int8, int4: y = MatMulNBits(x, codes, scales, zero_points?, bias), and with floating offsets (GGUF
  Q4_1, Q4_K) y = MatMulNBits(...) + FusedMatMul(sums of x by block, offsets, transB=1), the sums
  shared by all that read x; e = GatherBlockQuantized(table, input_ids, scales) over the same bytes
  as a tied head.

Blocks that the source stores are used as they stand. What else there is, is rounded: to int8 under
int8; under int4 to int4, but to int8 the embedding, the head, and whatever a source that has
4-bit matrices itself keeps in more bits. A matrix whose K is no multiple of 16 stays in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from enginewright.builder import linear
from enginewright.builder.block_tensor import BlockTensor
from enginewright.builder.passes.match import (
    MICROSOFT,
    constant_value,
    insert_before,
    replace,
)
from enginewright.builder.passes.stored_blocks import Matrix, Storage
from enginewright.builder.weight_tensor import initializer, weight_of

PRECISIONS = ("fp32", "int8", "int4")
# Activations are rounded to 8 bits in blocks of the weight's size: products of integers.
_INTEGER_PRODUCTS = 4


def quantize(model: ir.Model, precision: str) -> None:
    """Lower every Linear, and the embedding where the precision is not fp32."""
    assert precision in PRECISIONS
    graph = model.graph
    linears = [node for node in graph if node.op_type == linear.OP_TYPE]
    if precision == "fp32":
        for node in linears:
            _swap(node, _fp32(node))
        return
    head = _head(graph.outputs[0])
    layers = [weight_of(node.inputs[1]) for node in linears if node is not head]
    storage = Storage(precision, [weight for weight in layers if weight is not None])
    lowering = _Lowering(graph, storage)
    for node in [node for node in graph if node.op_type == "Gather"]:
        lowering.embedding(node)
    for node in linears:
        lowering.linear(node, is_head=node is head)


def _head(logits: ir.Value) -> ir.Node | None:
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
    assert node.graph is not None
    insert_before(node, nodes)
    replace(node.outputs, nodes[-1].outputs)
    node.graph.remove(node, safe=True)


class _Lowering:
    """What nodes share while a graph is lowered: initializers and sums of activations."""

    def __init__(self, graph: ir.Graph, storage: Storage) -> None:
        self._graph = graph
        self._storage = storage
        self._sums: dict[tuple[int, int], ir.Value] = {}

    def linear(self, node: ir.Node, *, is_head: bool) -> None:
        weight = weight_of(node.inputs[1])
        stored = None if weight is None else self._storage.of_linear(weight, is_head=is_head)
        if stored is None:
            _swap(node, _fp32(node))
            return
        bias = node.inputs[2] if len(node.inputs) == 3 else None
        name = node.inputs[1].name or ""  # type: ignore[union-attr]
        if len(stored) == 1:
            _swap(node, self._product(node, stored[0], name, bias))
            return
        nodes: list[ir.Node] = []
        parts = []
        for index, matrix in enumerate(stored):
            nodes += self._product(node, matrix, f"{name}.{index}", None)
            parts.append(nodes[-1].outputs[0])
        nodes.append(ir.node("Concat", parts, {"axis": -1}))
        if bias is not None:
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias]))
        _swap(node, nodes)

    def _product(
        self, node: ir.Node, matrix: Matrix, name: str, bias: ir.Value | None
    ) -> list[ir.Node]:
        x = node.inputs[0]
        assert x is not None
        nodes = []
        if matrix.order is not None:
            nodes.append(self._reordered(x, matrix.order, name))
            x = nodes[0].outputs[0]
        form = matrix.lazy.form
        operands: list[ir.Value | None] = [x, *self._operands(matrix, name, "codes"), None, bias]
        attributes = {"N": form.rows, "K": form.inputs, "bits": form.bits}
        attributes |= {"block_size": form.block_size, "accuracy_level": _INTEGER_PRODUCTS}
        while operands[-1] is None:
            operands.pop()
        product = ir.node("MatMulNBits", operands, attributes, domain=MICROSOFT)
        nodes.append(product)
        if not form.offsets:
            return nodes
        sums = self._block_sums(node, x, form.block_size, shared=matrix.order is None)
        offsets = self._part(matrix, "offsets", name)
        least = ir.node("FusedMatMul", [sums, offsets], {"transB": 1}, domain=MICROSOFT)
        return [*nodes, least, ir.node("Add", [product.outputs[0], least.outputs[0]])]
