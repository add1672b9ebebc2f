"""GELU by tanh is found in the form that GPT-2 is exported with, and in no other."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.builder.passes.fuse_gelu import fuse_gelu
from enginewright.builder.passes.simplify import simplify


def _graph(cubic: float) -> str:
    return f"""
    one (float[B, 8] x) => (float[B, 8] y) {{
        half = Constant <value = float {{0.5}}> ()
        three = Constant <value = float {{3.0}}> ()
        c = Constant <value = float {{{cubic}}}> ()
        root = Constant <value = float {{0.7978845608}}> ()
        unit = Constant <value = float {{1.0}}> ()
        halved = Mul (x, half)
        power = Pow (x, three)
        scaled = Mul (power, c)
        total = Add (x, scaled)
        inner = Mul (total, root)
        bent = Tanh (inner)
        gate = Add (bent, unit)
        y = Mul (halved, gate)
    }}
    """


def test_eight_nodes_become_one(graph, rng):
    made = graph(_graph(0.044715))
    x = {"x": 3 * rng.normal(size=(5, 8)).astype(np.float32)}
    expected = made.run(x)[0]
    fuse_gelu(made.model)
    simplify(made.model)
    assert made.ops() == {"Gelu": 1}
    np.testing.assert_allclose(made.run(x)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cubic", [0.05, 0.0])
def test_other_numbers_are_left_alone(graph, cubic):
    made = graph(_graph(cubic))
    fuse_gelu(made.model)
    assert made.ops()["Gelu"] == 0
