"""CachedAttention -> TensorRT's own attention over a linear cache, layout ``slots``.

| input            | shape               | dtype | meaning                                |
|------------------|---------------------|-------|----------------------------------------|
| past_lengths     | [B]                 | int32 | tokens already in the cache            |
| k_cache, v_cache | [B, kv_heads, C, D] | T     | the cache; C is the engine's capacity  |

Before: CachedAttention(q [B, S, heads D], k, v, k_cache [blocks, ...], v_cache, block_table,
past_lengths, new_lengths, cos, sin).
After: q, k, v as [B, heads, S, D]; q, k = RotaryEmbedding(q | k, cos, sin, positions);
k_cache.out = TensorScatter(k_cache, k, past_lengths), v alike; out = TRT_Attention(q scale,
k_cache.out, v_cache.out, kv_lengths = past_lengths + S), causal from the lower right corner.

Of a row that is padded, what stands beyond its new tokens is written too, after them, so no token
sees it; the row's next step writes over it. past_lengths + S must not exceed C.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from enginewright.builder.passes.match import constant_value, declare, insert_before, replace
from enginewright.plugins.attention.contract import OP_TYPE
from enginewright.runtime.errors import UnsupportedModelError

TENSORRT = "trt"
_HEADS = range(16, 257, 8)
"""Sizes of a head that TensorRT-RTX 1.7 was seen to have kernels for."""


def lower_native_attention(model: ir.Model, dtype: ir.DataType, capacity: int) -> None:
    """Lower every attention node; T = ``dtype``, C = ``capacity``.

    Raises UnsupportedModelError for what TensorRT's attention does not have.
    """
    graph = model.graph
    nodes = [node for node in graph if node.op_type == OP_TYPE]
    for node in nodes:
        _check(node, capacity)
    inputs = {value.name or "": value for value in graph.inputs}
    for name, value in inputs.items():
        if name.startswith(("k_cache.", "v_cache.")):
            assert value.shape is not None
            value.shape = ir.Shape(["batch", value.shape[1], capacity, value.shape[3]])
    step = _step(graph, inputs)
    for node in nodes:
        _Layer(graph, node, dtype, step).lower()
        graph.remove(node, safe=True)
    for name in ("block_table", "new_lengths"):
        assert not inputs[name].uses()
        graph.inputs.remove(inputs[name])


def _check(node: ir.Node, capacity: int) -> None:
    window = node.attributes["window"].as_int()
    softcap = node.attributes["softcap"].as_float()
    found, smaller = None, ""
    if softcap:
        found = f"a soft cap of {softcap:g} on attention scores"
    elif len(node.inputs) > 10 and node.inputs[10] is not None:
        found = "attention sinks"
    elif 0 < window < capacity:
        found = f"a sliding window of {window} tokens, below limits.max_context {capacity}"
        smaller = f", or limits.max_context: {window}"
    elif (size := _last(node.inputs[3])) not in _HEADS:
        found = f"heads of {size} dimensions, not multiples of 8 from 16 to 256,"
    if found is not None:
        raise UnsupportedModelError(
            f"attention: native cannot be built: the model has {found}, and TensorRT's own "
            f"attention has no such thing; use attention: plugin{smaller}"
        )


@dataclass(frozen=True)
class _Step:
    """What all layers share: positions [B, S], past_lengths as int64 [B], kv_lengths int32 [B]."""

    positions: ir.Value
    past: ir.Value
    kv_lengths: ir.Value


def _step(graph: ir.Graph, inputs: dict[str, ir.Value]) -> _Step:
    past = inputs["past_lengths"]
    wide = _typed(ir.node("Cast", [past], {"to": ir.DataType.INT64.value}), past.shape)
    length = _typed(ir.node("Shape", [inputs["input_ids"]], {"start": 1, "end": 2}), ir.Shape([1]))
    narrow = ir.node("Cast", [length.outputs[0]], {"to": ir.DataType.INT32.value})
    total = ir.node("Add", [past, narrow.outputs[0]])
    for node, shape in ((narrow, ir.Shape([1])), (total, past.shape)):
        _typed(node, shape, ir.DataType.INT32)
    graph.insert_before(graph[0], [wide, length, narrow, total])
    return _Step(inputs["positions"], wide.outputs[0], total.outputs[0])


def _typed(
    node: ir.Node, shape: ir.Shape | None, dtype: ir.DataType = ir.DataType.INT64
) -> ir.Node:
    declare(node.outputs[0], dtype, shape)
    return node


class _Layer:
    """One attention node and the nodes that come in its place."""

    def __init__(self, graph: ir.Graph, node: ir.Node, dtype: ir.DataType, step: _Step) -> None:
        self._graph = graph
        self._node = node
        self._dtype = dtype
        self._step = step
        self._heads = node.attributes["num_heads"].as_int()
        self._kv_heads = node.attributes["kv_heads"].as_int()

    def lower(self) -> None:
        node, step = self._node, self._step
        q, k, v, k_cache, v_cache = node.inputs[:5]
        assert k_cache is not None
        assert v_cache is not None
        query = self._scaled(self._rotated(self._by_heads(q, self._heads)))
        key = self._rotated(self._by_heads(k, self._kv_heads))
        value = self._by_heads(v, self._kv_heads)
        k_out = self._scattered(k_cache, key)
        v_out = self._scattered(v_cache, value)
        out = self._add(
            "TRT_Attention",
            [query, k_out, v_out, None, None, step.kv_lengths],
            query.shape,
            domain=TENSORRT,
            causal_kind="lower_right",
            query_form="padded_bhnd",
            kv_form="padded_bhnd",
        )
        turned = self._add("Transpose", [out], _turned(out), perm=[0, 2, 1, 3])
        flat = self._reshaped(turned, [0, 0, self._heads * _last(turned)])
        replace(node.outputs, [flat, k_out, v_out])

    def _by_heads(self, x: ir.Value | None, heads: int) -> ir.Value:
        """[B, S, heads * D] -> [B, heads, S, D]."""
        assert x is not None
        apart = self._reshaped(x, [0, 0, heads, _last(x) // heads])
        return self._add("Transpose", [apart], _turned(apart), perm=[0, 2, 1, 3])

    def _rotated(self, x: ir.Value) -> ir.Value:
        tables = self._node.inputs[8:10]
        if len(tables) < 2 or tables[0] is None or tables[1] is None:
            return x
        rotary_dim = self._node.attributes["rotary_dim"].as_int()
        cos, sin = (self._table(table) for table in tables if table is not None)
        return self._add(
            "RotaryEmbedding",
            [x, cos, sin, self._step.positions],
            x.shape,
            interleaved=self._node.attributes["interleaved"].as_int(),
            rotary_embedding_dim=0 if rotary_dim == _last(x) else rotary_dim,  # 0: all
        )

    def _table(self, table: ir.Value) -> ir.Value:
        assert table.const_value is not None
        values = table.const_value.numpy().astype(self._dtype.numpy())
        return constant_value(self._graph, f"{table.name}.{self._dtype.name.lower()}", values)

    def _scaled(self, x: ir.Value) -> ir.Value:
        """x times the scale, which TensorRT's attention has not.

        A scale that T does not hold would be off by the same factor everywhere: so in float32.
        """
        scale = np.float32(self._node.attributes["scale"].as_float())
        exact = scale.astype(self._dtype.numpy()) == scale
        dtype = self._dtype if exact else ir.DataType.FLOAT
        name = f"scale.{scale:.9g}.{dtype.name.lower()}"
        factor = constant_value(self._graph, name, np.array(scale, dtype.numpy()))
        if exact:
            return self._add("Mul", [x, factor], x.shape)
        wide = self._add("Cast", [x], x.shape, dtype, to=dtype.value)
        product = self._add("Mul", [wide, factor], x.shape, dtype)
        return self._add("Cast", [product], x.shape, to=self._dtype.value)

    def _scattered(self, cache: ir.Value, new: ir.Value) -> ir.Value:
        operands = [cache, new, self._step.past]
        return self._add("TensorScatter", operands, cache.shape, axis=2, mode="linear")

    def _reshaped(self, x: ir.Value, target: list[int]) -> ir.Value:
        name = "shape." + "_".join(map(str, target))
        shape = constant_value(self._graph, name, np.array(target, np.int64))
        assert x.shape is not None
        sizes = [size or x.shape[axis] for axis, size in enumerate(target)]
        return self._add("Reshape", [x, shape], ir.Shape(sizes), allowzero=0)

    def _add(
        self,
        op_type: str,
        operands: list[ir.Value | None] | list[ir.Value],
        shape: ir.Shape | None,
        dtype: ir.DataType | None = None,
        domain: str = "",
        **attributes: int | str | list[int],
    ) -> ir.Value:
        node = ir.node(op_type, operands, attributes, domain=domain)
        insert_before(self._node, [node])
        return _typed(node, shape, dtype or self._dtype).outputs[0]


def _last(x: ir.Value | None) -> int:
    assert x is not None
    assert x.shape is not None
    size = x.shape[-1]
    assert isinstance(size, int)
    return size


def _turned(x: ir.Value) -> ir.Shape:
    assert x.shape is not None
    a, b, c, d = x.shape
    return ir.Shape([a, c, b, d])
