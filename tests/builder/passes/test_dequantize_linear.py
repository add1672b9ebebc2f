"""Linear and the embedding over dequantized weights: which format, and the same values."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from onnx.reference import ReferenceEvaluator

from enginewright.builder.passes.dequantize_linear import dequantize_linear
from enginewright.builder.passes.standard_ops import standard_ops
from enginewright.builder.source.gguf_file import GgufTensor
from enginewright.builder.source.gguf_weight import GgufWeight
from enginewright.builder.weight_tensor import WeightTensor
from enginewright.builder.weights import ArrayWeight, Blocks, Weight

HIDDEN, VOCABULARY = 64, 48
_GRAPH = f"""
one (int64[B, S] input_ids, float16[{VOCABULARY}, {HIDDEN}] table,
     float16[{HIDDEN}, {HIDDEN}] m, float16[{HIDDEN}] bias)
    => (float16[B, S, {VOCABULARY}] logits) {{
    e = Gather <axis = 0> (table, input_ids)
    a = enginewright.Linear (e, m, bias)
    b = enginewright.Linear (e, m)
    h = Add (a, b)
    logits = enginewright.Linear (h, table)
}}
"""
IDS = np.array([[1, 5, 40], [0, 47, 1]])


def _made(graph, weights):
    model = graph(_GRAPH).model
    for name, weight in weights.items():
        value = next(value for value in model.graph.inputs if value.name == name)
        model.graph.inputs.remove(value)
        value.const_value = WeightTensor(weight, name, ir.DataType.FLOAT16)
        model.graph.initializers.add(value)
    for node in model.graph:
        width = VOCABULARY if node.outputs[0].is_graph_output() else HIDDEN
        node.outputs[0].shape = ir.Shape(["B", "S", width])
        node.outputs[0].dtype = ir.DataType.FLOAT16
    standard_ops(model)
    return model


def _stored(values: np.ndarray, kind: Type) -> GgufWeight:
    return GgufWeight(GgufTensor(kind, values.shape, quantize(values, kind)))


@pytest.fixture
def arrays(rng) -> dict[str, np.ndarray]:
    shapes = {"table": (VOCABULARY, HIDDEN), "m": (HIDDEN, HIDDEN), "bias": (HIDDEN,)}
    return {name: rng.normal(size=size).astype(np.float32) / 8 for name, size in shapes.items()}


def _expected(arrays) -> np.ndarray:
    e = arrays["table"][IDS]
    return (2 * e @ arrays["m"].T + arrays["bias"]) @ arrays["table"].T


def _run(model: ir.Model) -> np.ndarray:
    (logits,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"input_ids": IDS})
    assert logits.dtype == np.float16
    return logits.astype(np.float32)


def _formats(model: ir.Model) -> dict[str, tuple[str, str]]:
    """Types of the initializers that are codes, and of their scales."""
    return {
        (node.inputs[0].name or ""): tuple(value.dtype.name for value in node.inputs)
        for node in model.graph
        if node.op_type == "DequantizeLinear"
    }


def _error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(
    ("precision", "layer", "error"),
    [
        ("fp16", None, 0.002),
        ("int8", "INT8", 0.02),
        ("fp8", "FLOAT8E4M3FN", 0.05),
        ("int4", "INT4", 0.12),
        ("nvfp4", "FLOAT4E2M1", 0.15),
    ],
)
def test_a_float_source(graph, arrays, precision, layer, error):
    model = _made(graph, {name: ArrayWeight(array) for name, array in arrays.items()})
    dequantize_linear(model, precision)
    formats = _formats(model)
    if layer is None:
        assert formats == {}
    else:
        assert formats["m.codes"][0] == layer
        assert formats["table.codes"] == ("INT8", "FLOAT16")
        assert "table" not in model.graph.initializers
    assert _error(_run(model), _expected(arrays)) <= error


def test_a_tied_table_stands_once(graph, arrays):
    model = _made(graph, {name: ArrayWeight(array) for name, array in arrays.items()})
    dequantize_linear(model, "int4")
    gather = next(node for node in model.graph if node.op_type == "Gather")
    assert sorted(use.node.op_type for use in gather.inputs[0].uses()) == ["Gather", "Transpose"]


@pytest.mark.parametrize(("kind", "corrected"), [(Type.Q4_0, False), (Type.Q4_1, True)])
def test_stored_blocks_of_4_bits_are_carried_over(graph, arrays, kind, corrected):
    stored = _stored(arrays["m"], kind)
    arrays["m"] = dequantize(quantize(arrays["m"], kind), kind)
    weights = {name: ArrayWeight(array) for name, array in arrays.items()} | {"m": stored}
    model = _made(graph, weights)
    dequantize_linear(model, "int4")
    assert _formats(model)["m.codes"] == ("INT4", "FLOAT16")
    sums = [node for node in model.graph if node.op_type == "ReduceSum"]
    assert len(sums) == corrected  # once for both that read x
    assert _error(_run(model), _expected(arrays)) <= 0.02  # of the table in int8


def test_what_such_a_source_keeps_in_more_bits_is_int8(graph, arrays):
    weights = {name: ArrayWeight(array) for name, array in arrays.items()}
    weights["m"] = _stored(arrays["m"], Type.Q4_0)
    model = _made(graph, weights)
    other = next(node for node in model.graph if node.op_type == "Linear" and len(node.inputs) == 2)
    value = ir.Value(name="m8", shape=ir.Shape([HIDDEN, HIDDEN]))
    value.dtype = ir.DataType.FLOAT16
    value.const_value = WeightTensor(_stored(arrays["m"], Type.Q8_0), "m8", ir.DataType.FLOAT16)
    model.graph.initializers.add(value)
    other.replace_input_with(1, value)
    dequantize_linear(model, "int4")
    formats = _formats(model)
    assert (formats["m.codes"][0], formats["m8.codes"][0]) == ("INT4", "INT8")


class _Reordered(Weight):
    """Blocks of the columns in another order, as GPTQ with act-order stores them."""

    def __init__(self, blocks: Blocks, order: np.ndarray) -> None:
        super().__init__(blocks.shape)
        self._blocks, self._order = blocks, order

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self._blocks.dequantize()[start:stop, np.argsort(self._order)]

    def ordered_blocks(self) -> tuple[Blocks, np.ndarray]:
        return self._blocks, self._order


def test_blocks_of_inputs_in_another_order(graph, arrays, rng):
    codes = rng.integers(0, 16, (HIDDEN, HIDDEN)).astype(np.uint8)
    scales = np.full((HIDDEN, HIDDEN // 32), 1 / 32, np.float32)
    zeros = rng.integers(6, 10, scales.shape).astype(np.uint8)
    blocks = Blocks(4, 32, lambda: codes, scales, zeros)
    stored = _Reordered(blocks, rng.permutation(HIDDEN))
    arrays["m"] = stored.numpy()
    weights = {name: ArrayWeight(array) for name, array in arrays.items()} | {"m": stored}
    model = _made(graph, weights)
    dequantize_linear(model, "int4")
    assert _error(_run(model), _expected(arrays)) <= 0.02


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_a_width_that_no_block_divides_stays_t(graph, rng, precision):
    model = graph(
        "one (float16[B, S, 20] x, float16[8, 20] m, float16[9, 8] w) => (float16[B, S, 9] y) "
        "{ a = enginewright.Linear (x, m) y = enginewright.Linear (a, w) }"
    ).model
    for name, shape in (("m", (8, 20)), ("w", (9, 8))):
        value = next(value for value in model.graph.inputs if value.name == name)
        model.graph.inputs.remove(value)
        weight = ArrayWeight(rng.normal(size=shape).astype(np.float32))
        value.const_value = WeightTensor(weight, name, ir.DataType.FLOAT16)
        model.graph.initializers.add(value)
    for node, width in zip(model.graph, (8, 9), strict=True):
        node.outputs[0].shape = ir.Shape(["B", "S", width])
    dequantize_linear(model, precision)
    assert set(_formats(model)) == {"w.codes"}
    assert "m" in model.graph.initializers
