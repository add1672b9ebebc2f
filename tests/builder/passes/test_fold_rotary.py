"""Rotary moves into the op: the tables say what the graph computed, outputs stay equal."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from enginewright.builder.passes.fold_rotary import fold_rotary
from enginewright.builder.passes.simplify import simplify
from enginewright.plugins.attention.contract import AttentionAttributes
from enginewright.plugins.attention.reference import Rotary
from enginewright.plugins.attention.reference import cached_attention as reference

HEADS, KV_HEADS, SIZE = 4, 2, 16


class CachedAttention(OpRun):
    """The numpy reference as an operator of ONNX's reference evaluator."""

    op_domain = "enginewright"

    def _run(self, *inputs, num_heads, kv_heads, scale, rotary_dim=0, **_):
        tensors = [np.array(x) for x in inputs[:8]]
        rotary = Rotary(*inputs[8:10]) if len(inputs) > 8 else None
        attributes = AttentionAttributes(num_heads, kv_heads, scale, rotary_dim=rotary_dim)
        out = reference(*tensors, attributes, rotary)
        return out, tensors[3], tensors[4]


def _rotated(name: str, heads: int, width: int) -> str:
    """The graph text of rotary over the first ``width`` dimensions of each head."""
    whole = f"""
      {name}v = Reshape <allowzero = 0> ({name}, {name}shape)
      {name}t = Transpose <perm = [0, 2, 1, 3]> ({name}v)
    """
    source, result = f"{name}t", f"{name}e"
    parts = ""
    if width < SIZE:
        whole += f"""
          {name}p = Slice ({name}t, zero, width, axis)
          {name}rest = Slice ({name}t, width, size, axis)
        """
        source, result = f"{name}p", f"{name}part"
        parts = f"{name}e = Concat <axis = -1> ({name}part, {name}rest)"
    return (
        whole
        + f"""
      {name}a = Mul ({source}, cosine)
      {name}l = Slice ({source}, zero, half, axis)
      {name}r = Slice ({source}, half, width, axis)
      {name}n = Neg ({name}r)
      {name}h = Concat <axis = -1> ({name}n, {name}l)
      {name}b = Mul ({name}h, sine)
      {result} = Add ({name}a, {name}b)
      {parts}
      {name}back = Transpose <perm = [0, 2, 1, 3]> ({name}e)
      {name}f = Reshape <allowzero = 0> ({name}back, {name}flat)
    """
    )


def _text(width: int) -> str:
    half = width // 2
    frequencies = ", ".join(str(10.0 ** (-i / half)) for i in range(half))
    return f"""
    a (float[B, S, 64] q, float[B, S, 32] k, float[B, S, 32] v, float[N, 2, C, 16] kc,
       float[N, 2, C, 16] vc, int32[B, n] table, int32[B] past, int32[B] new,
       int64[B, S] positions) => (float[B, S, 64] out)
    <float[{half}] f = {{{frequencies}}}, int64[1] axis = {{3}}, int64[1] zero = {{0}},
     int64[1] half = {{{half}}}, int64[1] width = {{{width}}}, int64[1] size = {{16}},
     int64[1] two = {{2}}, int64[1] one = {{1}}, int64[4] qshape = {{0, 0, 4, 16}},
     int64[4] kshape = {{0, 0, 2, 16}}, int64[3] qflat = {{0, 0, 64}},
     int64[3] kflat = {{0, 0, 32}}>
    {{
      column = Unsqueeze (positions, two)
      at = Cast <to = 1> (column)
      angle = Mul (at, f)
      both = Concat <axis = -1> (angle, angle)
      c = Cos (both)
      s = Sin (both)
      cosine = Unsqueeze (c, one)
      sine = Unsqueeze (s, one)
      {_rotated("q", HEADS, width)}
      {_rotated("k", KV_HEADS, width)}
      out, ko, vo = enginewright.CachedAttention <num_heads = 4, kv_heads = 2, scale = 0.25>
        (qf, kf, v, kc, vc, table, past, new)
    }}
    """


def _feeds(rng) -> dict[str, np.ndarray]:
    past, new = np.array([3, 0], np.int32), np.array([2, 5], np.int32)
    sizes = {"q": (2, 5, 64), "k": (2, 5, 32), "v": (2, 5, 32)}
    caches = {"kc": (2, 2, 24, 16), "vc": (2, 2, 24, 16)}
    return {
        **{name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()},
        **{name: rng.normal(size=size).astype(np.float32) for name, size in caches.items()},
        "table": np.array([[0], [1]], np.int32),
        "past": past,
        "new": new,
        "positions": past[:, None].astype(np.int64) + np.arange(5),
    }


def _run(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=[CachedAttention])
    wanted = {value.name for value in model.graph.inputs}
    (out,) = evaluator.run(None, {name: x for name, x in feeds.items() if name in wanted})
    return out


@pytest.mark.parametrize("width", [16, 8])
def test_whole_and_partial_heads(graph, rng, width):
    made, feeds = graph(_text(width)), _feeds(rng)
    before = _run(made.model, feeds)
    fold_rotary(made.model, positions=24, takes=lambda dims: dims == width)
    simplify(made.model)
    assert made.ops() == {"CachedAttention": 1}
    (node,) = made.model.graph
    assert node.attributes["rotary_dim"].as_int() == width
    assert node.inputs[8].shape == [24, width // 2]
    np.testing.assert_allclose(_run(made.model, feeds), before, rtol=1e-4, atol=1e-5)


def test_left_in_the_graph_where_the_target_does_not_take_it(graph, rng):
    made, feeds = graph(_text(16)), _feeds(rng)
    before = _run(made.model, feeds)
    fold_rotary(made.model, positions=24, takes=lambda dims: False)
    simplify(made.model)
    assert made.ops()["Cos"] == 1
    np.testing.assert_allclose(_run(made.model, feeds), before, rtol=1e-5, atol=1e-6)
