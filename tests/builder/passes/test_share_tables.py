"""The bytes of a tied embedding are one constant."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.builder.passes.quantize import quantize
from enginewright.builder.passes.share_tables import share_tables

_GRAPH = """
model (int64[B, S] input_ids, float[50, 64] table, float[50, 64] other)
=> (float[B, S, 50] logits)
{
    e = Gather (table, input_ids)
    logits = enginewright.Linear (e, HEAD)
}
"""
_MATRICES = ("table", "other")


@pytest.fixture
def quantized(graph, rng):
    def made(head):
        matrices = {name: rng.normal(size=(50, 64)).astype(np.float32) for name in _MATRICES}
        found = graph(_GRAPH.replace("HEAD", head), **matrices)
        quantize(found.model, "int8")
        return found.model

    return made


def operands(model):
    """The table that is gathered from, and the codes of the head."""
    found = {node.op_type: node for node in model.graph}
    return found["GatherBlockQuantized"].inputs[0], found["BlockLinear"].inputs[1]


def test_a_tied_head_reads_the_table(quantized):
    model = quantized("table")
    before, codes = operands(model)
    assert before is not codes
    share_tables(model)
    table, shared = operands(model)
    assert shared is table is before
    assert table.const_value.numpy().tobytes() == codes.const_value.numpy().tobytes()
    assert codes.name not in model.graph.initializers


def test_a_head_of_its_own_stays(quantized):
    model = quantized("other")
    table, codes = operands(model)
    share_tables(model)
    assert operands(model) == (table, codes)
    assert codes.name in model.graph.initializers
