"""T where activations are, float32 where positions and weights are computed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from enginewright.builder.passes.half_activations import half_activations
from enginewright.builder.targets.external_data import WeightsFile
from enginewright.runtime.errors import BuildError, SourceError

_TEXT = """
g (int64[B, S] ids, int64[B, S] positions, float[9, 4] table, float[4] w, float[2] frequencies)
=> (float[B, S, 4] logits)
<float half = {0.5}, float shift = {0.1}>
{
    x = Gather (table, ids)
    axis = Constant <value_ints = [-1]> ()
    column = Unsqueeze (positions, axis)
    at = Cast <to = 1> (column)
    angles = Mul (at, frequencies)
    twice = Concat <axis = -1> (angles, angles)
    turn = Cos (twice)
    turned = Mul (x, turn)
    scaled = Mul (turned, w)
    less = Mul (scaled, half)
    wide = Cast <to = 1> (less)
    logits = Add (wide, shift)
}
"""
F32, F16, BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def weights(largest=1.0):
    rng = np.random.default_rng(2)
    table = rng.normal(size=(9, 4)).astype(np.float32)
    table[0, 0] = largest
    return {
        "table": table,
        "w": rng.normal(size=4).astype(np.float32),
        "frequencies": np.array([1, 0.01], np.float32),
    }


def types(graph):
    return {value.name: value.dtype for node in graph.model.graph for value in node.outputs}


@pytest.mark.parametrize("half", [F16, BF16])
def test_activations_become_half_and_the_rest_stays(graph, half):
    model = graph(_TEXT, **weights())
    before = types(model)
    half_activations(model.model, half)
    after = types(model)
    changed = {name for name, dtype in before.items() if after[name] != dtype}
    assert changed == {"x", "turned", "scaled", "less"}
    rounded = [name for name in after if name not in before]
    assert len(rounded) == 1, "the angles' cosine, once it is computed, for the product with x"
    assert after["angles"] == after["turn"] == after["logits"] == F32
    for node in model.model.graph:
        if node.op_type == "Mul":
            assert len({value.dtype for value in node.inputs}) == 1


def test_float16_gives_nearly_the_same(graph):
    model = graph(_TEXT, **weights())
    rng = np.random.default_rng(4)
    feeds = {"ids": rng.integers(0, 9, (2, 5)), "positions": np.arange(10).reshape(2, 5) + 1000}
    [before] = model.run(feeds)
    half_activations(model.model, F16)
    [after] = model.run(feeds)
    assert after.dtype == np.float32
    np.testing.assert_allclose(after, before, atol=4e-3)
    assert not np.array_equal(after, before)


def test_what_nothing_reads_is_left_to_the_op(graph):
    """The mean of a norm is float32 whatever T is."""
    text = """
    g (int64[B, S] ids, float[9, 4] table, float[4] w) => (float[B, S, 4] logits)
    { x = Gather (table, ids) logits, mean = LayerNormalization (x, w) }
    """
    model = graph(text, table=weights()["table"], w=weights()["w"])
    half_activations(model.model, F16)
    found = types(model)
    assert (found["logits"], found["mean"]) == (F16, None)


def test_shared_types_are_told_apart(graph):
    """A pass may let two values share one type; both are changed, each by itself."""
    model = graph(_TEXT, **weights())
    values = [output for node in model.model.graph for output in node.outputs]
    shared = ir.TensorType(F32)
    for value in values:
        if value.dtype == F32:
            value.type = shared
    half_activations(model.model, F16)
    found = types(model)
    assert found["x"] == found["less"] == F16
    assert found["angles"] == found["logits"] == F32


def test_numbers_beyond_the_type_are_refused(graph):
    wide = graph(_TEXT.replace("{0.5}", "{1e6}"), **weights())
    with pytest.raises(BuildError, match=r"half: .* beyond float16; .* bf16"):
        half_activations(wide.model, F16)
    half_activations(graph(_TEXT.replace("{0.5}", "{1e6}"), **weights()).model, BF16)
    model = graph(_TEXT, **weights(largest=1e6))
    half_activations(model.model, F16)
    table = next(v for v in model.model.graph.initializers.values() if v.name == "table.float16")
    with pytest.raises(SourceError, match=r"table\.float16: .*1e\+06, .*bf16"):
        table.const_value.numpy()


def test_weights_are_written_in_half(graph, tmp_path):
    values = weights()
    values["table"] = np.random.default_rng(1).normal(size=(900, 4)).astype(np.float32)
    model = graph(_TEXT.replace("float[9, 4]", "float[900, 4]"), **values)
    half_activations(model.model, BF16)
    with WeightsFile(tmp_path / "weights.bin") as file:
        file.save(model.model, tmp_path / "model.onnx")
    loaded = ir.load(tmp_path / "model.onnx")
    table = loaded.graph.initializers["table.bfloat16"].const_value
    assert table.dtype == BF16
    np.testing.assert_array_equal(table.numpy(), values["table"].astype(BF16.numpy()))
