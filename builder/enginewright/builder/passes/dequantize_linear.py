"""Linear and the token embedding as products with dequantized weights, which TensorRT fuses.

Before: y = Linear(x, W [N, K], bias); e = Gather(E, input_ids); all T.
After, by the weight's format (see device_weights.py):
- T: y = MatMul(x, Transpose(W)) + bias; e = Gather(E, input_ids).
- int8 and fp8 of a layer: y = MatMul(x, DequantizeLinear(codes [K, N], scales [N], axis 1)); of
  head and embedding, which may be tied: W = DequantizeLinear(codes [N, K], scales [N], axis 0).
- int4: y = MatMul(x, DequantizeLinear(codes [K, N], scales [K / block, N], axis 0, block_size));
  with corrections y = ... + MatMul(ReduceSum of x by blocks, corrections [K / block, N]).
- nvfp4: the scales are DequantizeLinear(scales in fp8, scale) themselves.

| precision   | layers                                 | head, token embedding |
|-------------|----------------------------------------|-----------------------|
| fp16, bf16  | T                                      | T, one table if tied  |
| int8        | int8                                   | int8                  |
| fp8, nvfp4  | fp8, nvfp4                             | int8                  |
| int4        | int4 as stored; of a source that has   | int8                  |
|             | such, the others int8; else rounded    |                       |

Formats are those that TensorRT-RTX 1.7 keeps packed and multiplies without widening the matrix
first, by its engines: int8 or fp8 with a scale for each row, int4 in blocks of 16 to 128. (int8 in
blocks and nvfp4 are widened by a kernel of their own at every step.) A matrix whose K is no
multiple of 16 stays T under int4 and nvfp4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from enginewright.builder import linear
from enginewright.builder.block_tensor import Latest
from enginewright.builder.device_weights import (
    FP4_BLOCK,
    DeviceMatrix,
    DeviceTensor,
    Form,
    Parts,
    has_corrections,
    int4_parts,
    rounded_parts,
)
from enginewright.builder.passes.centre_blocks import keep_axes
from enginewright.builder.passes.match import (
    constant_value,
    declare,
    initializer,
    insert_before,
    replace,
)
from enginewright.builder.passes.prune_logits import logits_head
from enginewright.builder.quantization import block_size_for
from enginewright.builder.stored_blocks import carried
from enginewright.builder.weight_tensor import weight_of
from enginewright.builder.weights import Weight

HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
PRECISIONS = (*HALVES, "int8", "int4", "fp8", "nvfp4")


def dequantize_linear(model: ir.Model, precision: str) -> None:
    """Lower every Linear and, where the precision is not T, the token embedding."""
    assert precision in PRECISIONS
    graph = model.graph
    head, _ = logits_head(graph.outputs[0])
    lowering = _Lowering(graph, precision, head)
    for node in list(graph):
        if node.op_type == linear.OP_TYPE:
            lowering.linear(node)
        elif node.op_type == "Gather" and precision not in HALVES:
            lowering.embedding(node)
    for value in [value for value in graph.initializers.values() if not value.uses()]:
        del graph.initializers[value.name or ""]


class _Lowering:
    """What nodes share while a graph is lowered: a tied matrix, the sums of an x by blocks."""

    def __init__(self, graph: ir.Graph, precision: str, head: ir.Node) -> None:
        self._graph = graph
        self._precision = precision
        self._head = head
        self._latest: Latest[Parts] = Latest()
        self._tables: dict[Weight, ir.Value] = {}
        self._sums: dict[tuple[ir.Value, int], ir.Value] = {}
        layers = (n for n in graph if n.op_type == linear.OP_TYPE and n is not head)
        weights = (weight_of(node.inputs[1]) for node in layers)
        self._source_has_int4 = precision == "int4" and any(
            weight is not None and carried(weight, (4,)) for weight in weights
        )

    def linear(self, node: ir.Node) -> None:
        x, stored, *bias = node.inputs
        weight = weight_of(stored)
        assert x is not None
        assert stored is not None
        if weight is None or self._precision in HALVES:
            y = self._product(node, x, stored)
        elif node is self._head:
            y = self._product(node, x, self._table(node, weight, stored))
        else:
            y = self._layer(node, x, weight, stored)
        if bias:
            y = self._add(node, "Add", [y, bias[0]], y.dtype)
        replace(node.outputs, [y])
        self._graph.remove(node, safe=True)

    def embedding(self, node: ir.Node) -> None:
        """Only the tokens' table: one of positions is small."""
        table, ids = node.inputs
        weight = weight_of(table)
        if weight is not None and table is not None and ids is not None and ids.is_graph_input():
            node.replace_input_with(0, self._table(node, weight, table))

    def _layer(self, node: ir.Node, x: ir.Value, weight: Weight, stored: ir.Value) -> ir.Value:
        kind, inputs = self._precision, weight.shape[1]
        if kind == "int4":
            return self._int4(node, x, weight, stored)
        if kind == "nvfp4":
            if inputs % FP4_BLOCK:
                return self._product(node, x, stored)
            form = Form(kind, (weight.shape[0], inputs), FP4_BLOCK)
            return self._product(node, x, self._rounded(node, weight, form, stored))
        return self._by_rows(node, x, weight, kind, stored)

    def _int4(self, node: ir.Node, x: ir.Value, weight: Weight, stored: ir.Value) -> ir.Value:
        shape, found = (weight.shape[0], weight.shape[1]), carried(weight, (4,))
        size = block_size_for(shape[1])
        if found is None and self._source_has_int4:
            return self._by_rows(node, x, weight, "int8", stored)
        if found is None and size is None:
            return self._product(node, x, stored)
        if found is None:
            form = Form("int4", shape, size or 0, turned=True)
            return self._times(node, x, self._rounded(node, weight, form, stored))
        blocks, order = found
        if order is not None:
            x = self._ordered(node, x, f"{stored.name}.order", order.astype(np.int64))
        form = Form("int4", shape, blocks.block_size, has_corrections(blocks), turned=True)
        matrix = DeviceMatrix(form, partial(_carried_parts, weight), self._latest)
        y = self._times(node, x, self._dequantized(node, matrix, stored))
        if not form.corrections:
            return y
        sums = self._by_blocks(node, x, form)
        added = self._times(node, sums, self._part(matrix, "corrections", stored))
        return self._add(node, "Add", [y, added], y.dtype)

    def _by_rows(
        self, node: ir.Node, x: ir.Value, weight: Weight, kind: str, stored: ir.Value
    ) -> ir.Value:
        """The product with a layer's matrix that has a scale for each row."""
        form = Form(kind, (weight.shape[0], weight.shape[1]), turned=True)
        return self._times(node, x, self._rounded(node, weight, form, stored))

    def _table(self, node: ir.Node, weight: Weight, stored: ir.Value) -> ir.Value:
        """The head's or the embedding's matrix in int8; a tied one is stored once."""
        if weight not in self._tables:
            form = Form("int8", (weight.shape[0], weight.shape[1]))
            self._tables[weight] = self._rounded(node, weight, form, stored)
        return self._tables[weight]

    def _rounded(self, node: ir.Node, weight: Weight, form: Form, stored: ir.Value) -> ir.Value:
        compute = partial(rounded_parts, weight, form, stored.name or "")
        return self._dequantized(node, DeviceMatrix(form, compute, self._latest), stored)

    def _dequantized(self, node: ir.Node, matrix: DeviceMatrix, stored: ir.Value) -> ir.Value:
        form = matrix.form
        scales = self._part(matrix, "scales", stored)
        if form.kind == "nvfp4":
            scale = self._part(matrix, "scale", stored)
            scales = self._add(node, "DequantizeLinear", [scales, scale], ir.DataType.FLOAT16)
        blocks = {"block_size": form.block_size} if form.block_size else {}
        axis = int(bool(form.block_size) != form.turned)
        codes = self._part(matrix, "codes", stored)
        operands = [codes, scales]
        made = self._add(
            node, "DequantizeLinear", operands, ir.DataType.FLOAT16, axis=axis, **blocks
        )
        made.shape = codes.shape
        return made

    def _product(self, node: ir.Node, x: ir.Value, weight: ir.Value) -> ir.Value:
        """x W^T for W [N, K]."""
        turned = self._add(node, "Transpose", [weight], weight.dtype, perm=[1, 0])
        assert weight.shape is not None
        turned.shape = ir.Shape(list(weight.shape)[::-1])
        return self._times(node, x, turned)

    def _times(self, node: ir.Node, x: ir.Value, weight: ir.Value) -> ir.Value:
        """x W for W [K, N]."""
        y = self._add(node, "MatMul", [x, weight], x.dtype)
        assert weight.shape is not None
        assert x.shape is not None
        y.shape = ir.Shape([*list(x.shape)[:-1], weight.shape[1]])
        return y

    def _ordered(
        self,
        node: ir.Node,
        x: ir.Value,
        name: str,
        order: np.ndarray[tuple[int], np.dtype[np.int64]],
    ) -> ir.Value:
        made = self._add(
            node, "Gather", [x, constant_value(self._graph, name, order)], x.dtype, axis=-1
        )
        made.shape = x.shape
        return made

    def _by_blocks(self, node: ir.Node, x: ir.Value, form: Form) -> ir.Value:
        """The sum of x over each block, made once for each x and block size."""
        key = x, form.block_size
        if key not in self._sums:
            assert x.shape is not None
            leading, blocks = list(x.shape)[:-1], form.matrix[1] // form.block_size
            apart = keep_axes(self._graph, x, len(leading), [blocks, form.block_size])
            declare(apart.outputs[0], x.dtype, ir.Shape([*leading, blocks, form.block_size]))
            insert_before(node, [apart])
            last = constant_value(self._graph, "last_axis", np.array([-1], np.int64))
            operands = [apart.outputs[0], last]
            self._sums[key] = self._add(node, "ReduceSum", operands, x.dtype, keepdims=0)
            self._sums[key].shape = ir.Shape([*leading, blocks])
        return self._sums[key]

    def _part(self, matrix: DeviceMatrix, part: str, stored: ir.Value) -> ir.Value:
        return initializer(self._graph, DeviceTensor(matrix, part, f"{stored.name}.{part}"))

    def _add(
        self,
        anchor: ir.Node,
        op_type: str,
        operands: Sequence[ir.Value | None],
        dtype: ir.DataType | None,
        **attributes: int | list[int],
    ) -> ir.Value:
        node = ir.node(op_type, operands, attributes)
        insert_before(anchor, [node])
        declare(node.outputs[0], dtype)
        return node.outputs[0]


def _carried_parts(weight: Weight) -> Parts:
    found = carried(weight, (4,))
    assert found is not None, "a source gives the same blocks each time"
    return int4_parts(found[0])
