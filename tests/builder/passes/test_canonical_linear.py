"""Products with stored weights as one Linear, whichever way the weight lies."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import quantize

from enginewright.builder.passes.canonical_linear import canonical_linear
from enginewright.builder.source.gguf_file import GgufTensor
from enginewright.builder.source.gguf_weight import GgufWeight
from enginewright.builder.weight_tensor import WeightTensor, weight_of
from enginewright.builder.weights import transposed

_GEMM = """
one (float[B, 64] x, float[64, 48] w, float[48] b) => (float[B, 48] y) { y = Gemm (x, w, b) }
"""


@pytest.fixture
def made(graph, rng):
    return graph(
        _GEMM,
        w=rng.normal(size=(64, 48)).astype(np.float32),
        b=rng.normal(size=48).astype(np.float32),
    )


def test_a_gemm_becomes_a_linear_of_the_same_values(made, rng):
    x = {"x": rng.normal(size=(3, 64)).astype(np.float32)}
    expected = made.run(x)[0]
    canonical_linear(made.model)
    assert made.model.graph.outputs[0].producer().op_type == "Linear"
    np.testing.assert_allclose(made.run(x)[0], expected, rtol=1e-5, atol=1e-5)


def test_a_weight_that_was_transposed_for_the_gemm_keeps_its_blocks(made, rng):
    data = quantize(rng.normal(size=(48, 64)).astype(np.float32), Type.Q4_0)
    stored = GgufWeight(GgufTensor(Type.Q4_0, (48, 64), data))
    made.model.graph.initializers["w"].const_value = WeightTensor(transposed(stored), "w")
    canonical_linear(made.model)
    product = made.model.graph.outputs[0].producer()
    assert weight_of(product.inputs[1]) is stored
