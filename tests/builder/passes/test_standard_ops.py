"""Ops of ONNX Runtime alone become standard ones of the same meaning."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from enginewright.builder.passes.standard_ops import OPSET, standard_ops

_GRAPH = """
one (float[B, 8] x, float[8] w) => (float[B, 8] y) {
    two = Constant <value = float {2.0}> ()
    n = SimplifiedLayerNormalization <axis = -1, epsilon = 1e-6, stash_type = 1> (x, w)
    a = com.microsoft.QuickGelu <alpha = 1.0> (n)
    y = Mul (a, two)
}
"""


def test_norm_activation_and_constant(graph, rng):
    weight = rng.normal(size=8).astype(np.float32)
    made = graph(_GRAPH, w=weight)
    standard_ops(made.model)
    assert made.ops() == {"RMSNormalization": 1, "Swish": 1, "Mul": 1}
    assert made.model.graph.opset_imports[""] == OPSET
    x = rng.normal(size=(3, 8)).astype(np.float32)
    normed = weight * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    (y,) = ReferenceEvaluator(ir.to_proto(made.model)).run(None, {"x": x})
    np.testing.assert_allclose(y, 2 * normed / (1 + np.exp(-normed)), rtol=1e-5, atol=1e-6)
