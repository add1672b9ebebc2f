"""What most requests need of the logits is computed beside them, so that little leaves the device.

Before: the output logits [L, V] float32.
After, K being at most V: also the outputs

| output         | shape  | dtype   | made by                                                    |
|----------------|--------|---------|------------------------------------------------------------|
| top_logits     | [L, K] | float32 | TopK(logits), highest first                                |
| top_ids        | [L, K] | int32   | its indices                                                |
| log_normalizer | [L]    | float32 | m + Log(ReduceSum(Exp(logits - m))), m the highest         |

ReduceLogSumExp would say the same in one node; written out it cannot overflow, whatever a compiler
makes of that op.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from enginewright.builder.passes.match import constant_value, declare

TOP_COUNT = 64
"""K, where nothing else is asked for."""
OUTPUTS = ("top_logits", "top_ids", "log_normalizer")


def reduce_logits(model: ir.Model, count: int = TOP_COUNT) -> None:
    """Add the outputs, with the ``count`` highest logits of each row."""
    graph = model.graph
    logits = graph.outputs[0]
    assert logits.shape is not None
    rows, vocab_size = logits.shape
    assert isinstance(vocab_size, int)
    count = min(count, vocab_size)

    def number(value: int) -> ir.Value:
        return constant_value(graph, f"reduce_logits.{value}", np.array([value], np.int64))

    def add(op: str, width: int, *operands: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(op, operands, attributes, num_outputs=2 if op == "TopK" else 1)
        graph.append(node)
        declare(node.outputs[0], ir.DataType.FLOAT, ir.Shape([rows, width]))
        return node.outputs[0]

    top = add("TopK", count, logits, number(count), axis=-1)
    node = top.producer()
    assert node is not None
    declare(node.outputs[1], ir.DataType.INT64, ir.Shape([rows, count]))
    ids = add("Cast", count, node.outputs[1], to=ir.DataType.INT32.value)
    declare(ids, ir.DataType.INT32)
    highest = add("Slice", 1, top, number(0), number(1), number(-1))
    weights = add("Exp", vocab_size, add("Sub", vocab_size, logits, highest))
    total = add("ReduceSum", 1, weights, number(-1), keepdims=1)
    log_sum = add("Add", 1, add("Log", 1, total), highest)
    normalizer = add("Squeeze", 1, log_sum, number(-1))
    normalizer.shape = ir.Shape([rows])
    for name, value in zip(OUTPUTS, (top, ids, normalizer), strict=True):
        value.name = name
        graph.outputs.append(value)
