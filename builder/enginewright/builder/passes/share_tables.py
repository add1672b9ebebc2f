"""One constant for the bytes that a head and the tokens' table have in common.

Before: GatherBlockQuantized(table [V, K]) and BlockLinear(x, codes [V, K / block, block], ...), two
constants of the same bytes.
After: BlockLinear(x, table, ...). A runtime maps each constant by itself, and counts twice as
resident what two of them share.
"""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir

from enginewright.builder.block_tensor import BlockTensor
from enginewright.plugins.block_linear.contract import INPUTS, OP_TYPE

_CODES = INPUTS.index("codes")


def share_tables(model: ir.Model) -> None:
    """Let every BlockLinear over a table's bytes read the table."""
    graph = model.graph
    lookups = [node for node in graph if node.op_type == "GatherBlockQuantized"]
    tables = {_content(node.inputs[0]): node.inputs[0] for node in lookups}
    tables.pop(None, None)  # of constants that are no blocks
    for node in [node for node in graph if node.op_type == OP_TYPE]:
        codes = node.inputs[_CODES]
        table = tables.get(_content(codes))
        if codes is None or table is None:
            continue
        node.replace_input_with(_CODES, table)
        if not codes.uses():
            del graph.initializers[codes.name or ""]


def _content(value: ir.Value | None) -> Hashable:
    tensor = value.const_value if value is not None else None
    return tensor.content if isinstance(tensor, BlockTensor) else None
