"""Projections of the same activations become one product and a split."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.builder.passes.pack_projections import pack_projections

_PLAIN = """
qkv (float[B, S, 8] x, float[6, 8] wq, float[4, 8] wk, float[4, 8] wv)
=> (float[B, S, 6] q, float[B, S, 4] k, float[B, S, 4] v)
{ q = enginewright.Linear (x, wq) k = enginewright.Linear (x, wk) v = enginewright.Linear (x, wv) }
"""
_BIASED = """
qkv (float[B, S, 8] x, float[6, 8] wq, float[4, 8] wk, float[6] bq, float[4] bk)
=> (float[B, S, 6] q, float[B, S, 4] k)
{ q = enginewright.Linear (x, wq, bq) k = enginewright.Linear (x, wk, bk) }
"""


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        (_PLAIN, {"wq": (6, 8), "wk": (4, 8), "wv": (4, 8)}),
        (_BIASED, {"wq": (6, 8), "wk": (4, 8), "bq": (6,), "bk": (4,)}),
    ],
)
def test_one_product_and_a_split(graph, rng, text, shapes):
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    made = graph(text, **weights)
    x = {"x": rng.normal(size=(2, 3, 8)).astype(np.float32)}
    before = made.run(x)
    pack_projections(made.model)
    assert made.ops() == {"Linear": 1, "Split": 1}
    for new, old in zip(made.run(x), before, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)


def test_other_activations_are_not_packed(graph, rng):
    text = """
    two (float[B, 8] x, float[B, 8] z, float[6, 8] a, float[6, 8] b)
    => (float[B, 6] p, float[B, 6] q)
    { p = enginewright.Linear (x, a) q = enginewright.Linear (z, b) }
    """
    made = graph(text, a=np.ones((6, 8), np.float32), b=np.ones((6, 8), np.float32))
    pack_projections(made.model)
    assert made.ops() == {"Linear": 2}
