"""Only the wanted positions reach the head."""

from __future__ import annotations

import numpy as np

from enginewright.builder.passes.prune_logits import prune_logits

_TEXT = """
head (float[B, S, 8] x, float[20, 8] w) => (float[B, S, 20] logits)
<float cap = {5.0}>
{
  h = Relu (x)
  raw = enginewright.Linear (h, w)
  small = Div (raw, cap)
  bent = Tanh (small)
  logits = Mul (bent, cap)
}
"""


def test_rows_of_the_flattened_grid_in_the_order_asked(graph, rng):
    made = graph(_TEXT, w=rng.normal(size=(20, 8)).astype(np.float32))
    x = rng.normal(size=(2, 3, 8)).astype(np.float32)
    (before,) = made.run({"x": x})
    prune_logits(made.model)
    wanted = np.array([5, 0, 2], np.int64)
    (after,) = made.run({"x": x, "logits_index": wanted})
    np.testing.assert_allclose(after, before.reshape(6, 20)[wanted], rtol=1e-5, atol=1e-6)
    order = [node.op_type for node in made.model.graph]
    assert order.index("Gather") < order.index("Linear")
