"""The highest logits and the log of the sum come out beside the logits, by our own operator."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.builder.passes.lower_top_logits import lower_top_logits

_TEXT = """
head (float[L, 8] x, float[300, 8] w) => (float[L, 300] logits)
{ logits = enginewright.Linear (x, w) }
"""


@pytest.mark.parametrize(("asked", "count"), [(None, 64), (5, 5), (400, 300)])
def test_types_and_shapes_are_declared(graph, asked, count):
    made = graph(_TEXT, w=np.zeros((300, 8), np.float32))
    lower_top_logits(made.model, *([] if asked is None else [asked]))
    told = {v.name: (v.dtype.name, list(map(str, v.shape))) for v in made.model.graph.outputs}
    assert told == {
        "logits": ("FLOAT", ["L", "300"]),
        "top_logits": ("FLOAT", ["L", str(count)]),
        "top_ids": ("INT32", ["L", str(count)]),
        "log_normalizer": ("FLOAT", ["L"]),
    }
    (node,) = (node for node in made.model.graph if node.op_type == "TopLogits")
    assert node.attributes["k"].as_int() == count
    assert [value.name for value in node.inputs] == ["logits"]
