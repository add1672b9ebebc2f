"""The graph in T: where it rounds, and what stays float32."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from enginewright.builder.passes.prune_logits import prune_logits
from enginewright.builder.passes.standard_ops import standard_ops
from enginewright.builder.passes.to_half import to_half
from enginewright.builder.weight_tensor import WeightTensor
from enginewright.runtime.errors import SourceError

_GRAPH = """
one (int64[B, S] input_ids, float[320, 16] table, float[16] w, float[16, 16] m)
    => (float[B, S, 320] logits) {
    cap = Constant <value = float {30.0}> ()
    e = Gather <axis = 0> (table, input_ids)
    n = SimplifiedLayerNormalization <axis = -1, epsilon = 1e-5, stash_type = 1> (e, w)
    a = enginewright.Linear (n, m)
    h = Add (e, a)
    head = enginewright.Linear (h, table)
    d = Div (head, cap)
    t = Tanh (d)
    logits = Mul (t, cap)
}
"""
HALVES = [ir.DataType.FLOAT16, ir.DataType.BFLOAT16]


@pytest.fixture(params=HALVES, ids=lambda dtype: dtype.name)
def half(request) -> ir.DataType:
    return request.param


@pytest.fixture
def lowered(graph, rng, half):
    weights = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in (("table", (320, 16)), ("w", 16), ("m", (16, 16)))
    }
    made = graph(_GRAPH, **weights)
    for node in made.model.graph:
        shape = [320] if node.name == "head" else [16]
        for value in node.outputs:
            value.shape = value.shape or ir.Shape(["B", "S", *shape])
            value.dtype = ir.DataType.FLOAT
    standard_ops(made.model)
    prune_logits(made.model)
    to_half(made.model, half)
    return made.model, weights


def _node(model: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == op_type)


def test_a_norm_is_float32_between_two_casts(lowered, half):
    model, weights = lowered
    norm = _node(model, "RMSNormalization")
    widened, narrowed = norm.inputs[0].producer(), norm.outputs[0].uses()[0].node
    assert [widened.op_type, narrowed.op_type] == ["Cast", "Cast"]
    assert widened.inputs[0].dtype == narrowed.outputs[0].dtype == half
    assert {value.dtype for value in (*norm.inputs, *norm.outputs)} == {ir.DataType.FLOAT}
    np.testing.assert_array_equal(norm.inputs[1].const_value.numpy(), weights["w"])


def test_linears_and_the_table_are_t(lowered, half):
    model, weights = lowered
    linears = [node for node in model.graph if node.op_type == "Linear"]
    for node in linears:
        assert {value.dtype for value in (*node.inputs, *node.outputs)} == {half}
    assert linears[-1].inputs[1] is _node(model, "Gather").inputs[0]  # tied: one initializer
    rounded = linears[0].inputs[1].const_value
    assert isinstance(rounded, WeightTensor)
    kind = np.float16 if half == ir.DataType.FLOAT16 else ml_dtypes.bfloat16
    np.testing.assert_array_equal(rounded.numpy(), weights["m"].astype(kind))


def test_behind_the_head_all_is_float32(lowered):
    model, _ = lowered
    logits = model.graph.outputs[0]
    assert logits.name == "logits"
    assert logits.dtype == ir.DataType.FLOAT
    assert {value.dtype for value in _node(model, "Tanh").inputs} == {ir.DataType.FLOAT}
    assert {value.dtype for value in _node(model, "Div").inputs} == {ir.DataType.FLOAT}


def test_every_value_has_the_type_that_its_op_gives(lowered):
    model, _ = lowered
    for node in model.graph:
        if node.op_type in ("Cast", "Gather", "Reshape"):
            continue
        floating = {value.dtype for value in (*node.inputs, *node.outputs)}
        assert len(floating) == 1, node


def test_a_weight_beyond_float16_is_refused_by_name(stored_weight):
    tensor = WeightTensor(stored_weight(1e5), "layer.w", ir.DataType.FLOAT16)
    with pytest.raises(SourceError, match=r"layer\.w: holds values of 100000.*bf16"):
        tensor.numpy()
    assert np.isfinite(WeightTensor(stored_weight(1e5), "w", ir.DataType.BFLOAT16).numpy()).all()


@pytest.fixture
def stored_weight():
    from enginewright.builder.weights import ArrayWeight

    return lambda value: ArrayWeight(np.full((2, 3), value, np.float32))
