"""Layout changes that cancel go away, computed target shapes become constants."""

from __future__ import annotations

import numpy as np

from enginewright.builder.passes.canonical_linear import canonical_linear
from enginewright.builder.passes.derive_positions import derive_positions
from enginewright.builder.passes.simplify import simplify


def test_inverse_transposes_cancel(graph, rng):
    text = """
    t (float[B, 4, 6, 2] x) => (float[B, 4, 6, 2] y)
    {
      a = Transpose <perm = [0, 2, 1, 3]> (x)
      b = Transpose <perm = [0, 2, 1, 3]> (a)
      y = Neg (b)
    }
    """
    made = graph(text)
    simplify(made.model)
    assert made.ops() == {"Neg": 1}
    x = rng.normal(size=(3, 4, 6, 2)).astype(np.float32)
    np.testing.assert_array_equal(made.run({"x": x})[0], -x)


def test_transposes_that_do_not_cancel_stay(graph):
    text = """
    t (float[B, 4, 6, 2] x) => (float[6, 4, B, 2] y)
    { a = Transpose <perm = [0, 2, 1, 3]> (x) y = Transpose <perm = [1, 2, 0, 3]> (a) }
    """
    made = graph(text)
    simplify(made.model)
    assert made.ops() == {"Transpose": 2}


def test_a_shape_made_of_the_inputs_sizes_becomes_a_constant(graph, rng):
    text = """
    r (float[B, S, 64] x) => (float[B, S, 4, 16] y)
    <int64[2] tail = {4, 16}>
    {
      b = Shape <start = 0, end = 1> (x)
      s = Shape <start = 1, end = 2> (x)
      target = Concat <axis = 0> (b, s, tail)
      y = Reshape <allowzero = 1> (x, target)
    }
    """
    made = graph(text)
    made.model.graph.outputs[0].shape = made.model.graph.outputs[0].shape
    simplify(made.model)
    assert made.ops() == {"Reshape": 1}
    x = rng.normal(size=(2, 5, 64)).astype(np.float32)
    np.testing.assert_array_equal(made.run({"x": x})[0], x.reshape(2, 5, 4, 16))


def test_gemm_between_reshapes_becomes_linear(graph, rng):
    text = """
    g (float[B, S, 8] x, float[8, 6] w, float[6] bias) => (float[B, S, 6] y)
    <int64[2] flat = {-1, 8}, int64[1] last = {6}>
    {
      two = Reshape (x, flat)
      product = Gemm (two, w, bias)
      lead = Shape <start = 0, end = 2> (x)
      target = Concat <axis = 0> (lead, last)
      y = Reshape (product, target)
    }
    """
    weights = {"w": rng.normal(size=(8, 6)), "bias": rng.normal(size=6)}
    made = graph(text, **{name: array.astype(np.float32) for name, array in weights.items()})
    x = {"x": rng.normal(size=(2, 3, 8)).astype(np.float32)}
    (before,) = made.run(x)
    canonical_linear(made.model)
    simplify(made.model)
    assert made.ops() == {"Linear": 1}
    np.testing.assert_allclose(made.run(x)[0], before, rtol=1e-5, atol=1e-6)


_POSITIONS = """
p (int64[B, S] input_ids, int32[B] past_lengths, int64[B, S] positions) => (int64[B, S] y)
{ y = Add (input_ids, POSITIONS) }
"""


def test_positions_are_derived_from_lengths(graph):
    made = graph(_POSITIONS.replace("POSITIONS", "positions"))
    derive_positions(made.model)
    feeds = {"input_ids": np.zeros((2, 3), np.int64), "past_lengths": np.array([0, 7], np.int32)}
    np.testing.assert_array_equal(made.run(feeds)[0], [[0, 1, 2], [7, 8, 9]])


def test_unread_positions_leave_nothing_behind(graph):
    made = graph(_POSITIONS.replace("POSITIONS", "input_ids"))
    derive_positions(made.model)
    assert made.ops() == {"Add": 1}
    assert "positions" not in {value.name for value in made.model.graph.inputs}
