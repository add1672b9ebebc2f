"""What stands between two linear layers -> one operator each of our library for the CPU.

Before: n, _, _, s = SkipSimplifiedLayerNormalization(x, y, w).
After: n, s = AddRMSNorm(x, y, w).

Before: gate, up = Split(x, two equal parts); Mul(QuickGelu(gate) with alpha 1, up).
After: SwiGLU(x); where x = BlockLinear(...) is read by nothing else, BlockLinear(...) with
``gated`` = 1, which never writes x to memory.
"""

from __future__ import annotations

import onnx_ir as ir

from enginewright.builder.passes.match import (
    constant,
    consumers,
    insert_before,
    other_input,
    producer,
    replace,
)
from enginewright.plugins.block_linear import contract as block_linear
from enginewright.plugins.row_ops.contract import ABI_VERSION, ADD_RMS_NORM, DOMAIN, SWIGLU


def lower_row_ops(model: ir.Model) -> None:
    """Lower every norm with its sum, and every gated SiLU over a packed projection."""
    for node in list(model.graph):
        if node.op_type == "SkipSimplifiedLayerNormalization" and len(node.inputs) == 3:
            _lower_norm(node)
        elif node.op_type == "QuickGelu" and node.attributes["alpha"].as_float() == 1:
            _lower_swiglu(node)
    model.graph.opset_imports[DOMAIN] = ABI_VERSION


def _lower_norm(node: ir.Node) -> None:
    lowered = ir.node(
        ADD_RMS_NORM,
        node.inputs,
        {"epsilon": node.attributes["epsilon"].as_float()},
        domain=DOMAIN,
        num_outputs=2,
    )
    insert_before(node, [lowered])
    replace([node.outputs[0], node.outputs[3]], lowered.outputs)
    assert node.graph is not None
    node.graph.remove([node], safe=True)


def _lower_swiglu(activation: ir.Node) -> None:
    split = producer(activation.inputs[0], "Split")
    products = consumers(activation.outputs[0], "Mul")
    if split is None or len(products) != 1 or not _halves(split):
        return
    (product,) = products
    gate, up = split.outputs
    if activation.inputs[0] is not gate or other_input(product, activation.outputs[0]) is not up:
        return
    if len(gate.uses()) != 1 or len(up.uses()) != 1 or len(activation.outputs[0].uses()) != 1:
        return
    done = [product, activation, split]
    packed = producer(split.inputs[0], block_linear.OP_TYPE)
    if packed is None or len(packed.outputs[0].uses()) > 1 or packed.outputs[0].is_graph_output():
        lowered = ir.node(SWIGLU, split.inputs[:1], domain=DOMAIN)
    else:
        attributes = [*packed.attributes.values(), ir.AttrInt64(block_linear.GATED, 1)]
        lowered = ir.Node(packed.domain, packed.op_type, packed.inputs, attributes)
        done.append(packed)
    insert_before(product, [lowered])
    replace(product.outputs, lowered.outputs)
    assert product.graph is not None
    product.graph.remove(done, safe=True)


def _halves(split: ir.Node) -> bool:
    if len(split.outputs) != 2 or split.attributes["axis"].as_int() != -1:
        return False
    sizes = constant(split.inputs[1]) if len(split.inputs) == 2 else None
    return sizes is not None and sizes[0] == sizes[1]
