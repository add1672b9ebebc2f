"""The highest logits and the log of the sum come out beside the logits."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.builder.passes.reduce_logits import reduce_logits

_TEXT = """
head (float[L, 8] x, float[300, 8] w) => (float[L, 300] logits)
{ logits = enginewright.Linear (x, w) }
"""


@pytest.mark.parametrize(("asked", "count"), [(5, 5), (400, 300)])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_the_highest_first_and_the_normalizer(graph, rng, asked, count, scale):
    made = graph(_TEXT, w=rng.normal(size=(300, 8)).astype(np.float32))
    x = (rng.normal(size=(3, 8)) * scale).astype(np.float32)
    (before,) = made.run({"x": x})
    reduce_logits(made.model, asked)
    logits, top_logits, top_ids, log_normalizer = made.run({"x": x})
    np.testing.assert_array_equal(logits, before)
    order = np.argsort(-before, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(top_ids, order)
    np.testing.assert_array_equal(top_logits, np.take_along_axis(before, order, axis=1))
    wide = before.astype(np.float64)
    peak = wide.max(axis=1)
    expected = peak + np.log(np.exp(wide - peak[:, None]).sum(axis=1))
    np.testing.assert_allclose(log_normalizer, expected, rtol=1e-6)
    assert (top_ids.dtype, log_normalizer.dtype) == (np.int32, np.float32)


def test_types_and_shapes_are_declared(graph, rng):
    made = graph(_TEXT, w=rng.normal(size=(300, 8)).astype(np.float32))
    reduce_logits(made.model)
    told = {v.name: (v.dtype.name, list(map(str, v.shape))) for v in made.model.graph.outputs}
    assert told == {
        "logits": ("FLOAT", ["L", "300"]),
        "top_logits": ("FLOAT", ["L", "64"]),
        "top_ids": ("INT32", ["L", "64"]),
        "log_normalizer": ("FLOAT", ["L"]),
    }
