"""x * sigmoid(x) becomes one node."""

from __future__ import annotations

import numpy as np

from enginewright.builder.passes.fuse_activation import fuse_activation
from enginewright.builder.passes.simplify import simplify

_TEXT = """
silu (float[B, S, 16] x, float[B, S, 16] z) => (float[B, S, 16] y)
{ s = Sigmoid (x) a = Mul (OTHER, s) y = Mul (a, z) }
"""


def _feeds(rng) -> dict[str, np.ndarray]:
    return {name: rng.normal(size=(2, 3, 16)).astype(np.float32) for name in "xz"}


def test_silu_is_one_node_with_equal_output(graph, rng):
    made, feeds = graph(_TEXT.replace("OTHER", "x")), _feeds(rng)
    (before,) = made.run(feeds)
    fuse_activation(made.model)
    simplify(made.model)
    assert made.ops() == {"QuickGelu": 1, "Mul": 1}
    np.testing.assert_allclose(made.run(feeds)[0], before, rtol=1e-5, atol=1e-6)


def test_a_sigmoid_of_something_else_is_left_alone(graph, rng):
    made = graph(_TEXT.replace("OTHER", "z"))
    fuse_activation(made.model)
    assert made.ops() == {"Sigmoid": 1, "Mul": 2}
