"""Attention over a linear cache by TensorRT's own ops, against the numpy reference."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from enginewright.builder.passes.derive_positions import derive_positions
from enginewright.builder.passes.lower_native_attention import TENSORRT, lower_native_attention
from enginewright.builder.passes.match import constant_value
from enginewright.builder.passes.standard_ops import OPSET
from enginewright.plugins.attention.contract import AttentionAttributes
from enginewright.plugins.attention.reference import Rotary
from enginewright.plugins.attention.reference import cached_attention as reference
from enginewright.runtime.errors import UnsupportedModelError

BATCH, HEADS, KV_HEADS, SIZE, CAPACITY = 3, 4, 2, 16, 24
_GRAPH = f"""
one (int64[B, S] input_ids, int32[B] past_lengths, int32[B] new_lengths, int32[B, n] block_table,
     int64[B, S] positions, float[N, {KV_HEADS}, P, {SIZE}] "k_cache.0",
     float[N, {KV_HEADS}, P, {SIZE}] "v_cache.0", float[B, S, {HEADS * SIZE}] q,
     float[B, S, {KV_HEADS * SIZE}] k, float[B, S, {KV_HEADS * SIZE}] v)
    => (float[B, S, {HEADS * SIZE}] out, float[N, {KV_HEADS}, P, {SIZE}] "k_cache.0.out",
        float[N, {KV_HEADS}, P, {SIZE}] "v_cache.0.out") {{
    out, "k_cache.0.out", "v_cache.0.out" = enginewright.CachedAttention
        <num_heads = {HEADS}, kv_heads = {KV_HEADS}, scale = @scale, window = @window,
         softcap = @softcap, abi_version = 1>
        (q, k, v, "k_cache.0", "v_cache.0", block_table, past_lengths, new_lengths)
}}
"""


class TRT_Attention(OpRun):  # noqa: N801 - the op's name
    """What its documentation says of lower_right: query s of a row sees kv_lengths - S + s + 1."""

    op_domain = TENSORRT

    def _run(self, q, k, v, mask, query_lengths, kv_lengths, causal_kind, **_):
        assert causal_kind == "lower_right"
        assert mask is None
        assert query_lengths is None
        out = np.zeros_like(q)
        length, group = q.shape[2], q.shape[1] // k.shape[1]
        for b, h, s in np.ndindex(q.shape[:3]):
            seen = kv_lengths[b] - length + s + 1
            scores = k[b, h // group, :seen] @ q[b, h, s]
            weights = np.exp(scores - scores.max())
            out[b, h, s] = weights @ v[b, h // group, :seen] / weights.sum()
        return (out,)


def _text(window: int = 0, softcap: float = 0.0, scale: float = 0.25) -> str:
    text = _GRAPH.replace("@scale", str(scale)).replace("@window", str(window))
    return text.replace("@softcap", str(softcap))


def _with_rotary(model: ir.Model, tables: tuple[np.ndarray, np.ndarray]) -> None:
    node = next(node for node in model.graph if node.op_type == "CachedAttention")
    node.resize_inputs(10)
    for index, (name, table) in enumerate(zip(("cos", "sin"), tables, strict=True), 8):
        node.replace_input_with(index, constant_value(model.graph, f"rotary.0.{name}", table))
    node.attributes["rotary_dim"] = ir.AttrInt64("rotary_dim", 2 * tables[0].shape[1])
    node.attributes["interleaved"] = ir.AttrInt64("interleaved", 0)


def _lowered(graph, text: str, tables=None) -> ir.Model:
    model = graph(text).model
    if tables is not None:
        _with_rotary(model, tables)
    model.graph.opset_imports.update({"": OPSET, TENSORRT: 1})
    lower_native_attention(model, ir.DataType.FLOAT, CAPACITY)
    derive_positions(model)
    return model


def _feeds(rng, past: list[int], new: list[int]) -> dict[str, np.ndarray]:
    length, cache = max(new), (BATCH, KV_HEADS, CAPACITY, SIZE)
    shapes = {"q": (BATCH, length, HEADS * SIZE), "k": (BATCH, length, KV_HEADS * SIZE)}
    shapes |= {"v": shapes["k"], "k_cache.0": cache, "v_cache.0": cache}
    return {
        **{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()},
        "input_ids": np.zeros((BATCH, length), np.int64),
        "past_lengths": np.array(past, np.int32),
        "new_lengths": np.array(new, np.int32),
    }


def _expected(feeds, scale: float, tables) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    caches = [feeds[f"{kind}_cache.0"].copy() for kind in "kv"]
    rotary = None if tables is None else Rotary(*tables)
    rotary_dim = 0 if tables is None else 2 * tables[0].shape[1]
    attributes = AttentionAttributes(HEADS, KV_HEADS, scale, rotary_dim=rotary_dim)
    step = np.arange(BATCH, dtype=np.int32)[:, None], feeds["past_lengths"], feeds["new_lengths"]
    inputs = (feeds["q"], feeds["k"], feeds["v"])
    out = reference(*inputs, *caches, *step, attributes, rotary)
    return out, caches[0], caches[1]


def _tables(rng, width: int) -> tuple[np.ndarray, np.ndarray]:
    angles = rng.uniform(0, 6, (CAPACITY, width // 2)).astype(np.float32)
    return np.cos(angles), np.sin(angles)


@pytest.mark.parametrize("width", [0, 8, 16])
@pytest.mark.parametrize(
    ("past", "new"), [([0, 0, 0], [5, 2, 1]), ([7, 0, 19], [1, 1, 1]), ([7, 7, 7], [4, 4, 4])]
)
def test_values_of_the_reference(graph, rng, width, past, new):
    tables = _tables(rng, width) if width else None
    model, feeds = _lowered(graph, _text(), tables), _feeds(rng, past, new)
    assert [value.name for value in model.graph.inputs if value.name in feeds] == [
        "input_ids", "past_lengths", "k_cache.0", "v_cache.0", "q", "k", "v"
    ]  # fmt: skip
    wanted = {value.name: feeds[value.name] for value in model.graph.inputs}
    evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=[TRT_Attention])
    out, k_out, v_out = evaluator.run(None, wanted)
    expected, k_expected, v_expected = _expected(feeds, 0.25, tables)
    for row, (start, count) in enumerate(zip(past, new, strict=True)):
        real = slice(0, start + count)
        np.testing.assert_allclose(out[row, :count], expected[row, :count], atol=1e-5)
        np.testing.assert_allclose(k_out[row, :, real], k_expected[row, :, real], atol=1e-5)
        np.testing.assert_allclose(v_out[row, :, real], v_expected[row, :, real], atol=1e-5)


def test_a_scale_that_t_does_not_hold_is_applied_in_float32(graph):
    model = graph(_text(scale=0.088388)).model
    for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs)):
        if value.dtype == ir.DataType.FLOAT:
            value.dtype = ir.DataType.FLOAT16
    lower_native_attention(model, ir.DataType.FLOAT16, CAPACITY)
    product = next(node for node in model.graph if node.op_type == "Mul")
    assert {value.dtype for value in product.inputs} == {ir.DataType.FLOAT}
    assert product.outputs[0].uses()[0].node.outputs[0].dtype == ir.DataType.FLOAT16


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (_text(window=16), r"window of 16 tokens, below limits\.max_context 24.*max_context: 16"),
        (_text(softcap=50.0), r"soft cap of 50.*attention: plugin$"),
        (_text().replace(", 16]", ", 8]"), r"heads of 8 dimensions, not multiples of 8 from 16"),
    ],
)
def test_what_tensorrt_has_not_is_refused_by_name(graph, text, complaint):
    with pytest.raises(UnsupportedModelError, match=complaint):
        _lowered(graph, text)


def test_a_window_of_the_whole_context_is_none(graph):
    assert _lowered(graph, _text(window=CAPACITY)).graph.num_nodes() > 0
