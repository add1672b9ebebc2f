"""Products that may be of bfloat16."""

from __future__ import annotations

from enginewright.builder.passes.allow_bfloat16 import allow_bfloat16

_GRAPH = """
one (float[2, 32] x, uint8[16, 2, 16] codes, float16[16, 2] scales) => (float[2, 16] out) {
    y = enginewright.BlockLinear <N = 16, K = 32, bits = 8, block_size = 16, zero = 128>
        (x, codes, scales)
    out = Relu (y)
}
"""


def test_nodes_that_know_the_attribute_have_it(graph):
    model = graph(_GRAPH).model
    linear, other = model.graph
    before = set(linear.attributes)
    allow_bfloat16(model)
    assert set(linear.attributes) == {*before, "bfloat16"}
    assert linear.attributes["bfloat16"].as_int() == 1
    assert not other.attributes
