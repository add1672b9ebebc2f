"""BlockLinear, lowered to operators that ONNX Runtime has itself.

Before: y = BlockLinear(x, codes, scales, zero_points?, offsets?, bias?).
After: y = MatMulNBits(x, codes, scales, zero_points?, bias?); with offsets y = MatMulNBits(...) +
FusedMatMul(sums of x by block, offsets, transB=1), the sums shared by all that read x. Scales and
offsets become float32, offsets such that the zero is the middle code: see centre_blocks.py.

MatMulNBits rounds x in blocks of the weight's size. All stand in blocks of 16 here, larger ones
taken apart: that rounding is the most exact, and the only one with which a row of 4-bit products is
summed alike alone and in a batch on every processor (seen to differ by 3e-7 in blocks of 32 without
VNNI, which the rounding of the next layer amplifies).

With ``whole_blocks`` they keep their size, and x its type: kernels on GPUs widen the codes instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from enginewright.builder.block_tensor import BlockForm, BlockTensor, LazyBlocks
from enginewright.builder.passes.centre_blocks import centred_offsets, float32, keep_axes
from enginewright.builder.passes.match import (
    MICROSOFT,
    constant_value,
    initializer,
    insert_before,
    replace,
)
from enginewright.builder.quantization import MIN_BLOCK_SIZE
from enginewright.plugins.block_linear import contract

# Activations are rounded to 8 bits: products of integers.
_INTEGER_PRODUCTS = 4


def lower_block_linear(model: ir.Model, *, whole_blocks: bool = False) -> None:
    """Replace every BlockLinear of the graph."""
    lowering = _Lowering(model.graph, whole_blocks)
    for node in [node for node in model.graph if node.op_type == contract.OP_TYPE]:
        nodes = lowering.product(node)
        insert_before(node, nodes)
        replace(node.outputs, nodes[-1].outputs)
        operands = node.inputs
        model.graph.remove(node, safe=True)
        for value in operands:
            if value is not None and value.is_initializer() and not value.uses():
                del model.graph.initializers[value.name or ""]


@dataclass
class _Lowering:
    """What the nodes of a graph share: the sums of an x by blocks."""

    graph: ir.Graph
    whole_blocks: bool
    sums: dict[tuple[int, int], ir.Value] = field(default_factory=dict)

    def product(self, node: ir.Node) -> list[ir.Node]:
        operands = dict(zip(contract.INPUTS, node.inputs, strict=False))
        x, codes, scales = operands["x"], operands["codes"], operands["scales"]
        assert x is not None
        assert scales is not None
        assert codes is not None
        assert isinstance(codes.const_value, BlockTensor)
        lazy = codes.const_value.lazy
        as_float = float32(scales)
        attributes = {"N": lazy.form.rows, "K": lazy.form.inputs, "bits": lazy.form.bits}
        repeated: list[ir.Node] = []
        if self.whole_blocks:
            attributes["block_size"] = lazy.form.block_size
            blocks = [codes, as_float.outputs[0], operands.get("zero_points")]
        else:
            attributes |= {"block_size": MIN_BLOCK_SIZE, "accuracy_level": _INTEGER_PRODUCTS}
            repeated, blocks = self._fine_blocks(codes, as_float.outputs[0], lazy)
        inputs = [x, *blocks, None, operands.get("bias")]
        while inputs[-1] is None:
            inputs.pop()
        product = ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT)
        nodes, offsets = centred_offsets(
            self.graph, lazy.form, as_float.outputs[0], operands.get("offsets")
        )
        nodes = [as_float, *repeated, *nodes]
        if offsets is None:
            return [*nodes, product]
        added, sums = self._sums(x, lazy.form)
        by_offsets = ir.node("FusedMatMul", [sums, offsets], {"transB": 1}, domain=MICROSOFT)
        total = ir.node("Add", [product.outputs[0], by_offsets.outputs[0]])
        return [*nodes, *added, product, by_offsets, total]

    def _part(self, lazy: LazyBlocks, part: str, codes: ir.Value) -> ir.Value:
        name = f"{(codes.name or '').removesuffix('.codes')}.{part}"
        return initializer(self.graph, BlockTensor(lazy, part, name))

    def _fine_blocks(
        self, codes: ir.Value, scales: ir.Value, lazy: LazyBlocks
    ) -> tuple[list[ir.Node], list[ir.Value | None]]:
        """Codes, scales and zero points of blocks of 16, and the nodes that make the scales."""
        repeated, fine_scales = self._fine(scales, lazy.form)
        zeros = self._part(lazy, "fine_zeros", codes) if lazy.form.zero_points else None
        return repeated, [self._part(lazy, "fine_codes", codes), fine_scales, zeros]

    def _fine(self, scales: ir.Value, form: BlockForm) -> tuple[list[ir.Node], ir.Value]:
        """The scales of blocks of 16."""
        times = form.block_size // MIN_BLOCK_SIZE
        if times == 1:
            return [], scales
        last = constant_value(self.graph, "last_axis", np.array([-1], np.int64))
        apart = ir.node("Unsqueeze", [scales, last])
        repeats = constant_value(self.graph, f"repeat_{times}", np.array([1, 1, times], np.int64))
        repeated = ir.node("Tile", [apart.outputs[0], repeats])
        joined = keep_axes(self.graph, repeated.outputs[0], 1, [form.inputs // MIN_BLOCK_SIZE])
        return [apart, repeated, joined], joined.outputs[0]

    def _sums(self, x: ir.Value, form: BlockForm) -> tuple[list[ir.Node], ir.Value]:
        """The sum of x over each block of offsets, made once for each x and block size."""
        key = (id(x), form.block_size)
        if key in self.sums:
            return [], self.sums[key]
        assert x.shape is not None
        blocks = [form.blocks, form.block_size]
        split = keep_axes(self.graph, x, len(x.shape) - 1, blocks)
        last = constant_value(self.graph, "last_axis", np.array([-1], np.int64))
        summed = ir.node("ReduceSum", [split.outputs[0], last], {"keepdims": 0})
        self.sums[key] = summed.outputs[0]
        return [split, summed], summed.outputs[0]
