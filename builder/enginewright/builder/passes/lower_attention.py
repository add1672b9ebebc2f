"""CachedAttention -> ONNX Runtime's GroupQueryAttention, layout ``slots``.

Before: CachedAttention(q, k, v, k_cache [blocks, ...], v_cache, block_table, past, new, cos, sin).
After: GroupQueryAttention(q, k, v, k_cache [B, ...], v_cache, past + new - 1, longest total,
cos, sin); the rows of the step are one contiguous range of the pool, so no table is needed.
Where q, k and v are one Split of a packed projection, the op takes the packed tensor.
With ``host_total`` the longest total is an input of the graph, total_length [] int32, so that
nothing is computed on a host that a device would have to wait for.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from enginewright.builder.passes.match import MICROSOFT, constant_value, insert_before, replace
from enginewright.plugins.attention.contract import OP_TYPE


def lower_attention(model: ir.Model, *, host_total: bool = False) -> None:
    """Lower every attention node and drop the input block_table."""
    graph = model.graph
    nodes = [node for node in graph if node.op_type == OP_TYPE]
    inputs = {value.name: value for value in graph.inputs}
    last, longest = _lengths(graph, inputs, host_total)
    for node in nodes:
        _lower(node, last, longest)
        graph.remove(node, safe=True)
    assert not inputs["block_table"].uses()
    graph.inputs.remove(inputs["block_table"])
    graph.opset_imports[MICROSOFT] = 1


def _lengths(
    graph: ir.Graph, inputs: Mapping[str | None, ir.Value], host_total: bool
) -> tuple[ir.Value, ir.Value]:
    """seqlens_k [B] (index of each row's last token) and the longest total, a scalar; int32.

    The op knows a prefill by a longest total equal to S, so S counts too where it is padded
    beyond every row.
    """
    one = constant_value(graph, "one_int32", np.array(1, np.int32))
    total = ir.node("Add", [inputs["past_lengths"], inputs["new_lengths"]])
    last = ir.node("Sub", [total.outputs[0], one])
    graph.insert_before(graph[0], [total, last])
    for node in (total, last):
        node.outputs[0].dtype = ir.DataType.INT32
    last.outputs[0].shape = inputs["past_lengths"].shape
    if host_total:
        longest = ir.Value(
            name="total_length", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT32)
        )
        graph.inputs.append(longest)
    else:
        longest = _longest(graph, inputs, total)
    return last.outputs[0], longest


def _longest(graph: ir.Graph, inputs: Mapping[str | None, ir.Value], total: ir.Node) -> ir.Value:
    most = ir.node("ReduceMax", [total.outputs[0]], {"keepdims": 0})
    width = ir.node("Shape", [inputs["input_ids"]], {"start": 1, "end": 2})
    narrow = ir.node("Cast", [width.outputs[0]], {"to": ir.DataType.INT32.value})
    axis = constant_value(graph, "zero_axis", np.array([0]))
    scalar = ir.node("Squeeze", [narrow.outputs[0], axis])
    longest = ir.node("Max", [most.outputs[0], scalar.outputs[0]])
    total.graph.insert_after(total, [most, width, narrow, scalar, longest])  # type: ignore[union-attr]
    for node in (most, longest):
        node.outputs[0].dtype = ir.DataType.INT32
    longest.outputs[0].shape = ir.Shape([])
    return longest.outputs[0]


def _lower(node: ir.Node, last: ir.Value, longest: ir.Value) -> None:
    q, k, v, k_cache, v_cache = node.inputs[:5]
    cos, sin, sinks = ([*node.inputs[8:], None, None, None])[:3]
    packed = packed_projection(node)
    operands = [packed, None, None] if packed is not None else [q, k, v]
    attributes = node.attributes
    window = attributes["window"].as_int()
    interleaved = attributes["interleaved"].as_int() if "interleaved" in attributes else 0
    lowered = ir.node(
        "GroupQueryAttention",
        [*operands, k_cache, v_cache, last, longest, cos, sin, None, None, sinks],
        {
            "num_heads": attributes["num_heads"].as_int(),
            "kv_num_heads": attributes["kv_heads"].as_int(),
            "scale": attributes["scale"].as_float(),
            "local_window_size": window or -1,
            "softcap": attributes["softcap"].as_float(),
            "do_rotary": int(cos is not None),
            "rotary_interleaved": interleaved,
        },
        domain=MICROSOFT,
        num_outputs=3,
    )
    insert_before(node, [lowered])
    replace(node.outputs, lowered.outputs)


def packed_projection(node: ir.Node) -> ir.Value | None:
    """The tensor that q, k and v are split from, in that order, or None."""
    q = node.inputs[0]
    split = None if q is None else q.producer()
    if split is None or split.op_type != "Split" or len(split.outputs) != 3:
        return None
    if any(operand is not part for operand, part in zip(node.inputs, split.outputs, strict=False)):
        return None
    return split.inputs[0]
