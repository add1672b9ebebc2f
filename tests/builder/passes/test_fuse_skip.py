"""A residual sum and its norm become one node that also gives the sum."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.builder.passes.fuse_skip import fuse_skip

_RMS = "y = SimplifiedLayerNormalization <axis = -1, epsilon = 1e-5, stash_type = 1> (s, w)"
_LAYER = "y = LayerNormalization <axis = -1, epsilon = 1e-5> (s, w, w)"
_TEXT = """
skip (float[B, S, 16] a, float[B, S, 16] b, float[16] w) => (float[B, S, 16] y, float[B, S, 16] r)
{{ s = Add (a, b) {norm} r = Mul (s, s) }}
"""


@pytest.mark.parametrize(("norm", "fused"), [(_RMS, "Simplified"), (_LAYER, "")])
def test_sum_and_norm_in_one_node(graph, rng, norm, fused):
    made = graph(_TEXT.format(norm=norm), w=rng.normal(size=16).astype(np.float32))
    feeds = {name: rng.normal(size=(2, 3, 16)).astype(np.float32) for name in "ab"}
    before = made.run(feeds)
    assert made.ops()["Add"] == 1
    fuse_skip(made.model)
    assert made.ops() == {f"Skip{fused}LayerNormalization": 1, "Mul": 1}
    for new, old in zip(made.run(feeds), before, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)


def test_a_broadcast_sum_is_left_alone(graph, rng):
    text = _TEXT.format(norm=_RMS).replace("float[B, S, 16] b", "float[16] b")
    made = graph(text, w=np.ones(16, np.float32))
    fuse_skip(made.model)
    assert made.ops()["Add"] == 1
