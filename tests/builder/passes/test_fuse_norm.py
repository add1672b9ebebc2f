"""RMS norms become SimplifiedLayerNormalization, Gemma's with 1 + w folded."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.builder.passes.fuse_norm import fuse_norm
from enginewright.builder.passes.simplify import simplify

_NORM = """
rms (float[B, S, 320] x, float[320] w) => (float[B, S, 320] y)
<float two = {{2.0}}, int64[1] axis = {{-1}}, float eps = {{1e-5}}, float one = {{1.0}}>
{{
  square = Pow (x, two)
  mean = ReduceMean (square, axis)
  total = Add (mean, eps)
  root = Sqrt (total)
  inverse = Reciprocal (root)
  scaled = Mul (x, inverse)
  {weight}
}}
"""
_PLAIN = "y = Mul (w, scaled)"
_PLUS_ONE = "v = Add (w, one) y = Mul (scaled, v)"


@pytest.mark.parametrize("weight", [_PLAIN, _PLUS_ONE])
def test_fused_to_one_node_with_equal_output(graph, rng, weight):
    made = graph(_NORM.format(weight=weight), w=rng.normal(size=320).astype(np.float32))
    x = {"x": rng.normal(size=(2, 3, 320)).astype(np.float32)}
    (before,) = made.run(x)
    assert made.ops()["Pow"] == 1
    fuse_norm(made.model)
    simplify(made.model)
    assert made.ops() == {"SimplifiedLayerNormalization": 1}
    np.testing.assert_allclose(made.run(x)[0], before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new"), [("two = {2.0}", "two = {3.0}"), ("axis = {-1}", "axis = {1}")]
)
def test_another_power_or_axis_is_left_alone(graph, rng, old, new):
    text = _NORM.format(weight=_PLAIN).replace(old, new)
    assert new in text
    made = graph(text, w=np.ones(320, np.float32))
    fuse_norm(made.model)
    assert "SimplifiedLayerNormalization" not in made.ops()
