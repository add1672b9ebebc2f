"""The attribute ``bfloat16`` of our operators: their products may be of such numbers.

Before: CachedAttention and BlockLinear, whose products are as exact as float32.
After: the same nodes with ``bfloat16`` = 1. A processor that has tiles of bfloat16 uses them; any
other computes as before.
"""

from __future__ import annotations

import onnx_ir as ir

from enginewright.plugins.attention import contract as attention
from enginewright.plugins.block_linear import contract as block_linear

_ATTRIBUTES = {
    (attention.DOMAIN, attention.OP_TYPE): attention.BFLOAT16,
    (block_linear.DOMAIN, block_linear.OP_TYPE): block_linear.BFLOAT16,
}


def allow_bfloat16(model: ir.Model) -> None:
    """Allow it to every node that knows the attribute."""
    for node in model.graph:
        name = _ATTRIBUTES.get((node.domain, node.op_type))
        if name is not None:
            node.attributes[name] = ir.AttrInt64(name, 1)
