"""What most requests need of the logits, by an operator of our library for the CPU.

Before: the output logits [L, V] float32.
After: also top_logits, top_ids [L, K] and log_normalizer [L] = TopLogits(logits); the outputs are
those of reduce_logits.py.
"""

from __future__ import annotations

import onnx_ir as ir

from enginewright.builder.passes.match import declare
from enginewright.builder.passes.reduce_logits import OUTPUTS, TOP_COUNT
from enginewright.plugins.row_ops.contract import ABI_VERSION, DOMAIN, TOP_LOGITS


def lower_top_logits(model: ir.Model, count: int = TOP_COUNT) -> None:
    """Add the outputs, with the ``count`` highest logits of each row, or all of them."""
    logits = model.graph.outputs[0]
    assert logits.shape is not None
    rows, vocab_size = logits.shape
    assert isinstance(vocab_size, int)
    count = min(count, vocab_size)
    node = ir.node(TOP_LOGITS, [logits], {"k": count}, domain=DOMAIN, num_outputs=len(OUTPUTS))
    model.graph.append(node)
    shapes = ([rows, count], [rows, count], [rows])
    for name, value, shape in zip(OUTPUTS, node.outputs, shapes, strict=True):
        value.name = name
        kind = ir.DataType.INT32 if name == "top_ids" else ir.DataType.FLOAT
        declare(value, kind, ir.Shape(shape))
        model.graph.outputs.append(value)
    model.graph.opset_imports[DOMAIN] = ABI_VERSION
