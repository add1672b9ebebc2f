"""Linear and the embedding in each precision: the nodes, the stored bytes, and the outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from gguf.quants import quantize as gguf_quantize

from enginewright.builder.passes.quantize import quantize
from enginewright.builder.source.gguf_file import GgufTensor
from enginewright.builder.source.gguf_weight import GgufWeight
from enginewright.builder.source.gptq import GptqWeight
from enginewright.builder.weight_tensor import WeightTensor
from enginewright.builder.weights import StackedWeight

_LAYER = """
layer (float[B, S, 64] x, float[48, 64] w, float[48] b, float[24, 48] head)
=> (float[B, S, 24] logits)
{
    h = enginewright.Linear (x, w, b)
    r = Relu (h)
    raw = enginewright.Linear (r, head)
    logits = Tanh (raw)
}
"""
_ONE = """
one (float[B, S, K] x, float[N, K] w) => (float[B, S, M] logits, float[B, S, N] y)
{ logits = Identity (x) y = enginewright.Linear (x, w) }
"""
_TWO = """
two (float[B, S, 64] x, float[40, 64] w, float[24, 64] v)
=> (float[B, S, 1] logits, float[B, S, 40] y, float[B, S, 24] z)
{
    axis = Constant <value_ints = [-1]> ()
    logits = ReduceMean (x, axis)
    y = enginewright.Linear (x, w)
    z = enginewright.Linear (x, v)
}
"""
_TIED = """
tied (int64[B, S] input_ids, float[50, 64] table, float[9, 64] places)
=> (float[B, S, 50] logits, float[B, S, 64] e)
{
    t = Gather (table, input_ids)
    nine = Constant <value_int = 9> ()
    p = Mod (input_ids, nine)
    q = Gather (places, p)
    e = Add (t, q)
    head = enginewright.Linear (e, table)
    cap = Constant <value_float = 0.5> ()
    logits = Mul (head, cap)
}
"""


def stored(graph, name, weight):
    """Let an initializer be a weight as a source gives it."""
    graph.model.graph.initializers[name].const_value = WeightTensor(weight, name)


def gguf(values, kind):
    return GgufWeight(GgufTensor(kind, values.shape, gguf_quantize(values, kind)))


def nodes(graph, op_type):
    return [node for node in graph.model.graph if node.op_type == op_type]


def part(node, index):
    value = node.inputs[index]
    return None if value is None else value.const_value.numpy()


def in_file(node, offsets=None):
    """What stands in the initializers of a MatMulNBits, dequantized in float32 by its formula."""
    bits, size = (node.attributes[name].as_int() for name in ("bits", "block_size"))
    packed, scales = part(node, 1), part(node, 2)
    codes = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1)
    codes = codes.reshape(*scales.shape, size).astype(np.float32)
    zeros = np.float32(1 << (bits - 1))
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        packed = part(node, 3)
        nibbles = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1)
        zeros = nibbles.reshape(len(packed), -1)[:, : scales.shape[1], None].astype(np.float32)
    values = (codes - zeros) * scales[..., None]
    if offsets is not None:
        values = values + offsets[..., None]
    return values.reshape(len(values), -1)


def exact_activations(graph):
    """Ask for products in float32, so that only the weights' rounding is left."""
    for node in nodes(graph, "MatMulNBits"):
        node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)


def relative(found, expected):
    return np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean())


@pytest.fixture
def normal(rng):
    return lambda *shape: rng.normal(size=shape).astype(np.float32)


def one(graph, inputs, outputs, weight):
    text = _ONE.replace("K", str(inputs)).replace("N", str(outputs)).replace("M", str(inputs))
    made = graph(text, w=weight if isinstance(weight, np.ndarray) else weight.numpy())
    if not isinstance(weight, np.ndarray):
        stored(made, "w", weight)
    return made


def test_fp32_reads_the_weight_as_it_is_stored(graph, normal):
    made = graph(_TWO, w=normal(40, 64), v=normal(24, 64))
    x = {"x": normal(2, 3, 64)}
    before = made.run(x)
    weight = made.model.graph.initializers["w"].const_value
    quantize(made.model, "fp32")
    assert made.ops()["FusedMatMul"] == 2
    assert nodes(made, "FusedMatMul")[0].inputs[1].const_value is weight
    for new, old in zip(made.run(x), before, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-5)


def test_fp32_adds_the_bias(graph, normal):
    made = graph(
        "one (float[B, 8] x, float[6, 8] w, float[6] b) => (float[B, 6] y)"
        "{ y = enginewright.Linear (x, w, b) }",
        w=normal(6, 8),
        b=normal(6),
    )
    x = {"x": normal(3, 8)}
    expected = made.run(x)[0]
    quantize(made.model, "fp32")
    assert made.ops() == {"FusedMatMul": 1, "Add": 1}
    np.testing.assert_allclose(made.run(x)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "weights_only", "with_activations"), [("int8", 0.006, 0.01), ("int4", 0.09, 0.09)]
)
def test_rounded_weights(graph, normal, precision, weights_only, with_activations):
    made = one(graph, 64, 40, normal(40, 64))
    x = {"x": normal(2, 3, 64)}
    expected = made.run(x)[1]
    quantize(made.model, precision)
    (product,) = nodes(made, "MatMulNBits")
    assert product.attributes["bits"].as_int() == int(precision[3:])
    assert "w" not in made.model.graph.initializers
    assert relative(made.run(x)[1], expected) < with_activations
    exact_activations(made)
    assert relative(made.run(x)[1], expected) < weights_only
    np.testing.assert_allclose(made.run(x)[1], x["x"] @ in_file(product).T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_1])
def test_gguf_blocks_stand_in_the_engine_bit_for_bit(graph, normal, kind):
    values = {"w": normal(40, 64), "v": normal(24, 64)}
    made = graph(_TWO, **values)
    for name, value in values.items():
        stored(made, name, gguf(value, kind))
    x = {"x": normal(2, 3, 64)}
    expected = made.run(x)
    quantize(made.model, "int4")
    exact_activations(made)
    floating = kind is Type.Q4_1
    offsets = [part(node, 1) for node in nodes(made, "FusedMatMul")] if floating else [None, None]
    for node, (name, value), offset in zip(
        nodes(made, "MatMulNBits"), values.items(), offsets, strict=True
    ):
        assert len(node.inputs) == 3, f"{name}: no zero points"
        own = dequantize(gguf_quantize(value, kind), kind)
        assert np.array_equal(in_file(node, offset), own)
    assert len(nodes(made, "ReduceSum")) == (1 if floating else 0), "one for both products"
    for new, old in zip(made.run(x), expected, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-5)


def test_activations_in_8_bits_cost_little_beside_offsets(graph, normal):
    made = one(graph, 64, 40, gguf(normal(40, 64), Type.Q4_1))
    x = {"x": normal(2, 3, 64)}
    expected = made.run(x)[1]
    quantize(made.model, "int4")
    assert relative(made.run(x)[1], expected) < 0.01


def test_bias_goes_into_the_product_and_the_head_stays_int8(graph, normal):
    made = graph(_LAYER, w=normal(48, 64), b=normal(48), head=normal(24, 48))
    quantize(made.model, "int4")
    assert made.ops() == {"MatMulNBits": 2, "Relu": 1, "Tanh": 1}
    layer, head = nodes(made, "MatMulNBits")
    assert (layer.attributes["bits"].as_int(), head.attributes["bits"].as_int()) == (4, 8)
    assert head.attributes["block_size"].as_int() == 16, "48 inputs are no multiple of 32"
    exact_activations(made)
    x = normal(2, 3, 64)
    hidden = np.maximum(x @ in_file(layer).T + part(layer, 5), 0)
    expected = np.tanh(hidden @ in_file(head).T)
    np.testing.assert_allclose(made.run({"x": x})[0], expected, rtol=1e-4, atol=1e-5)


def test_inputs_in_no_blocks_stay_in_fp32(graph, normal):
    made = one(graph, 20, 40, normal(40, 20))
    x = {"x": normal(2, 3, 20)}
    expected = made.run(x)[1]
    quantize(made.model, "int4")
    assert made.ops() == {"FusedMatMul": 1, "Identity": 1}
    np.testing.assert_allclose(made.run(x)[1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("kind", [None, Type.Q8_0, Type.Q4_1])
def test_embedding_and_tied_head_are_the_same_bytes(graph, normal, precision, kind):
    table = normal(50, 64)
    made = graph(_TIED, table=table, places=normal(9, 64))
    if kind is not None:
        stored(made, "table", gguf(table, kind))
    ids = {"input_ids": np.array([[0, 3, 49], [7, 7, 1]])}
    expected = made.run(ids)
    quantize(made.model, precision)
    (gather,), (head,) = nodes(made, "GatherBlockQuantized"), nodes(made, "MatMulNBits")
    assert gather.inputs[0].const_value.content == head.inputs[1].const_value.content
    assert gather.inputs[2] is head.inputs[2], "one tensor of scales"
    assert "places" in made.model.graph.initializers, "positions are not rounded"
    assert "table" not in made.model.graph.initializers
    exact_activations(made)
    logits, e = made.run(ids)
    if kind is Type.Q8_0 or (kind is Type.Q4_1 and precision == "int4"):
        assert np.array_equal(e, expected[1])
        np.testing.assert_allclose(logits, expected[0], rtol=1e-4, atol=1e-4)
    else:
        assert head.attributes["bits"].as_int() == 8
        assert relative(e, expected[1]) < 0.006
        assert relative(logits, expected[0]) < 0.008


def test_a_source_of_4_bits_keeps_at_8_what_it_has_in_more(graph, normal):
    made = graph(_TWO, w=normal(40, 64), v=normal(24, 64))
    stored(made, "w", gguf(normal(40, 64), Type.Q4_0))
    quantize(made.model, "int4")
    assert [n.attributes["bits"].as_int() for n in nodes(made, "MatMulNBits")] == [4, 8]


def test_packed_matrices_of_several_forms_become_several_products(graph, normal):
    parts = [gguf(normal(24, 64), Type.Q4_1), gguf(normal(16, 64), Type.Q8_0)]
    made = one(graph, 64, 40, StackedWeight(parts))
    x = {"x": normal(2, 3, 64)}
    expected = made.run(x)[1]
    quantize(made.model, "int4")
    assert made.ops()["MatMulNBits"] == 2
    assert made.ops()["Concat"] == 1
    first, second = nodes(made, "MatMulNBits")
    assert np.array_equal(in_file(second), parts[1].numpy())
    offsets = part(nodes(made, "FusedMatMul")[0], 1)
    assert np.array_equal(in_file(first, offsets), parts[0].numpy())
    exact_activations(made)
    np.testing.assert_allclose(made.run(x)[1], expected, rtol=1e-4, atol=1e-4)


def test_reordered_groups_reorder_the_activations(graph, rng, normal):
    groups = rng.permutation(np.arange(64) // 16)
    words = rng.integers(-(2**31), 2**31, (8, 40)).astype(np.int32)
    scales = rng.uniform(0.01, 0.1, (4, 40)).astype(np.float32)
    zeros = rng.integers(0, 16, (4, 40)).astype(np.uint8)
    weight = GptqWeight(words, scales, zeros, groups)
    assert weight.blocks() is None
    made = one(graph, 64, 40, weight)
    x = {"x": normal(2, 3, 64)}
    expected = made.run(x)[1]
    quantize(made.model, "int4")
    assert made.ops() == {"Gather": 1, "MatMulNBits": 1, "Identity": 1}
    (product,) = nodes(made, "MatMulNBits")
    order = part(nodes(made, "Gather")[0], 1)
    assert np.array_equal(in_file(product), weight.numpy()[:, order])
    exact_activations(made)
    np.testing.assert_allclose(made.run(x)[1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_row_has_the_same_bits_alone_and_among_others(graph, normal, precision):
    made = one(graph, 192, 96, normal(96, 192))
    quantize(made.model, precision)
    x = normal(1, 33, 192)
    together = made.run({"x": x})[1][0]
    alone = [made.run({"x": x[:, row : row + 1]})[1][0, 0] for row in range(33)]
    assert np.array_equal(together, np.stack(alone))
