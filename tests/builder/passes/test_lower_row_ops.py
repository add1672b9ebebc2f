"""A residual sum with its norm, and a gated activation, become operators of our own."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.builder.passes.lower_row_ops import lower_row_ops

_NORM = """
norm (float[B, S, 16] a, float[B, S, 16] b, float[16] w) => (float[B, S, 16] n, float[B, S, 16] r)
{ n, u, v, s = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 1e-5> (a, b, w)
  r = Mul (s, s) }
"""
_SWIGLU = """
gated (float[B, S, 32] x, int64[2] sizes) => (float[B, S, {width}] y)
{{ gate, up = Split <axis = -1> (x, sizes) {rest} }}
"""
_GATED = "s = com.microsoft.QuickGelu <alpha = 1.0> (gate) y = Mul (s, up)"


def test_a_norm_and_its_sum(graph):
    made = graph(_NORM, w=np.ones(16, np.float32))
    lower_row_ops(made.model)
    assert made.ops() == {"AddRMSNorm": 1, "Mul": 1}
    (norm,) = (node for node in made.model.graph if node.op_type == "AddRMSNorm")
    assert [value.name for value in norm.inputs] == ["a", "b", "w"]
    assert norm.attributes["epsilon"].as_float() == pytest.approx(1e-5)
    (square,) = (node for node in made.model.graph if node.op_type == "Mul")
    assert norm.outputs[1] is square.inputs[0]
    assert norm.outputs[0].name == "n"
    assert made.model.graph.outputs[0] is norm.outputs[0]


def test_a_gated_activation(graph):
    made = graph(_SWIGLU.format(width=16, rest=_GATED), sizes=np.array([16, 16]))
    lower_row_ops(made.model)
    assert made.ops() == {"SwiGLU": 1}
    assert [value.name for value in made.model.graph.node(0).inputs] == ["x"]


_PACKED = """
gated (float[B, S, 16] a, uint8[32, 1, 8] c, float[32, 1] w, int64[2] sizes) =>
    (float[B, S, 16] y{outputs})
{{ x = enginewright.BlockLinear <N = 32, K = 16, bits = 4, block_size = 16, zero = 8> (a, c, w)
   gate, up = Split <axis = -1> (x, sizes)
   s = com.microsoft.QuickGelu <alpha = 1.0> (gate) y = Mul (s, up){rest} }}
"""


def test_a_gate_goes_into_its_product(graph):
    made = graph(_PACKED.format(outputs="", rest=""), sizes=np.array([16, 16]))
    lower_row_ops(made.model)
    assert made.ops() == {"BlockLinear": 1}
    (product,) = made.model.graph
    assert [value.name for value in product.inputs] == ["a", "c", "w"]
    found = {name: attribute.as_int() for name, attribute in product.attributes.items()}
    assert found == {"N": 32, "K": 16, "bits": 4, "block_size": 16, "zero": 8, "gated": 1}
    assert made.model.graph.outputs[0] is product.outputs[0]


def test_a_product_that_is_read_elsewhere_keeps_its_gate_apart(graph):
    text = _PACKED.format(outputs=", float[B, S, 32] z", rest=" z = Neg (x)")
    made = graph(text, sizes=np.array([16, 16]))
    lower_row_ops(made.model)
    assert made.ops() == {"BlockLinear": 1, "SwiGLU": 1, "Neg": 1}


def test_a_product_that_is_an_output_keeps_its_gate_apart(graph):
    text = _PACKED.replace("x =", "z =").replace("(x,", "(z,")
    made = graph(text.format(outputs=", float[B, S, 32] z", rest=""), sizes=np.array([16, 16]))
    lower_row_ops(made.model)
    assert made.ops() == {"BlockLinear": 1, "SwiGLU": 1}


@pytest.mark.parametrize(
    "rest",
    [
        "s = com.microsoft.QuickGelu <alpha = 1.702> (gate) y = Mul (s, up)",
        "s = com.microsoft.QuickGelu <alpha = 1.0> (up) y = Mul (s, gate)",
        "s = com.microsoft.QuickGelu <alpha = 1.0> (gate) y = Mul (s, gate)",
        "s = com.microsoft.QuickGelu <alpha = 1.0> (gate) z = Mul (s, up) y = Add (z, s)",
    ],
)
def test_other_products_are_left_alone(graph, rest):
    made = graph(_SWIGLU.format(width=16, rest=rest), sizes=np.array([16, 16]))
    before = made.ops()
    lower_row_ops(made.model)
    assert made.ops() == before
