"""Linear and the embedding in each precision: the nodes, the stored bytes, and the outputs.

Products of BlockLinear are computed here in numpy, from what stands in the initializers.
"""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize as gguf_dequantize
from gguf.quants import quantize as gguf_quantize

from enginewright.builder.passes.quantize import quantize
from enginewright.builder.source.gguf_file import GgufTensor
from enginewright.builder.source.gguf_weight import GgufWeight
from enginewright.builder.source.gptq import GptqWeight
from enginewright.builder.weight_tensor import WeightTensor
from enginewright.builder.weights import Blocks, StackedWeight
from enginewright.plugins.block_linear import contract
from enginewright.plugins.block_linear.reference import dequantize

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
_UNBIASED = """
one (float[B, S, 64] x, float[40, 64] w) => (float[B, S, 64] logits, float[B, S, 40] y)
{ logits = Identity (x) y = enginewright.Linear (x, w) }
"""
_BIASED = """
one (float[B, S, 64] x, float[40, 64] w, float[40] b) => (float[B, S, 64] logits, float[B, S, 40] y)
{ logits = Identity (x) y = enginewright.Linear (x, w, b) }
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


def part(node, name):
    """What stands in an operand of a BlockLinear; None where it has none."""
    found = dict(zip(contract.INPUTS, node.inputs, strict=False)).get(name)
    return None if found is None else found.const_value.numpy()


def attribute(node, name):
    return node.attributes[name].as_int()


def in_file(node):
    """The matrix of a BlockLinear, dequantized by the operator's reference."""
    parts = {name: part(node, name) for name in ("codes", "scales", "zero_points", "offsets")}
    found = dequantize(**parts, bits=attribute(node, "bits"), zero=attribute(node, "zero"))
    assert found.shape == (attribute(node, "N"), attribute(node, "K"))
    return found


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


@pytest.mark.parametrize(("precision", "error"), [("int8", 0.006), ("int4", 0.09)])
def test_rounded_weights(graph, normal, precision, error):
    weight = normal(40, 64)
    made = one(graph, 64, 40, weight)
    quantize(made.model, precision)
    (product,) = nodes(made, "BlockLinear")
    assert attribute(product, "bits") == int(precision[3:])
    assert part(product, "scales").dtype == np.float16
    assert (part(product, "zero_points") is None) == (precision == "int8")
    assert part(product, "offsets") is None
    assert "w" not in made.model.graph.initializers
    assert 0 < relative(in_file(product), weight) < error
    assert made.model.graph.opset_imports[contract.DOMAIN] == contract.ABI_VERSION


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_1, Type.Q8_0])
def test_gguf_blocks_stand_in_the_engine_bit_for_bit(graph, normal, kind, precision):
    values = {"w": normal(40, 64), "v": normal(24, 64)}
    made = graph(_TWO, **values)
    for name, value in values.items():
        stored(made, name, gguf(value, Type.Q4_0 if name == "v" else kind))
    quantize(made.model, precision)
    for node, (name, value) in zip(nodes(made, "BlockLinear"), values.items(), strict=True):
        own = Type.Q4_0 if name == "v" else kind
        floating = own is Type.Q4_1
        assert part(node, "zero_points") is None
        assert (part(node, "offsets") is not None) == floating
        assert part(node, "scales").dtype == np.float16
        found = in_file(node).astype(np.float32)
        assert np.array_equal(found, gguf_dequantize(gguf_quantize(value, own), own))


def test_scales_that_no_half_holds_stay_float32(stored_in, graph, normal):
    weight = gguf(normal(40, 256), Type.Q4_0)
    blocks = weight.blocks()
    made = one(graph, 256, 40, weight)
    third = Blocks(4, 32, blocks.codes, blocks.scales / np.float32(3))
    stored(made, "w", stored_in(third))
    quantize(made.model, "int4")
    (node,) = nodes(made, "BlockLinear")
    assert part(node, "scales").dtype == np.float32
    assert np.array_equal(in_file(node).astype(np.float32), third.dequantize())


def test_bias_goes_into_the_product_and_the_head_stays_int8(graph, normal):
    weights = {"w": normal(48, 64), "b": normal(48), "head": normal(24, 48)}
    made = graph(_LAYER, **weights)
    quantize(made.model, "int4")
    assert made.ops() == {"BlockLinear": 2, "Relu": 1, "Tanh": 1}
    layer, head = nodes(made, "BlockLinear")
    assert (attribute(layer, "bits"), attribute(head, "bits")) == (4, 8)
    assert attribute(head, "block_size") == 16, "48 inputs are no multiple of 32"
    assert np.array_equal(part(layer, "bias"), weights["b"])
    assert part(head, "bias") is None
    assert relative(in_file(head), weights["head"]) < 0.006


def test_inputs_in_no_blocks_stay_in_fp32(graph, normal):
    made = one(graph, 20, 40, normal(40, 20))
    x = {"x": normal(2, 3, 20)}
    expected = made.run(x)[1]
    quantize(made.model, "int4")
    assert made.ops() == {"FusedMatMul": 1, "Identity": 1}
    np.testing.assert_allclose(made.run(x)[1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("kind", [None, Type.Q8_0, Type.Q4_0, Type.Q4_1])
def test_embedding_and_tied_head_are_the_same_bytes(graph, normal, precision, kind):
    table = normal(50, 64)
    made = graph(_TIED, table=table, places=normal(9, 64))
    if kind is not None:
        stored(made, "table", gguf(table, kind))
    ids = {"input_ids": np.array([[0, 3, 49], [7, 7, 1]])}
    expected = made.run(ids)
    quantize(made.model, precision)
    (gather,), (head,) = nodes(made, "GatherBlockQuantized"), nodes(made, "BlockLinear")
    assert gather.inputs[0].const_value.content == head.inputs[1].const_value.content
    assert gather.inputs[2].producer().inputs[0] is head.inputs[2], "one tensor of scales"
    assert "places" in made.model.graph.initializers, "positions are not rounded"
    assert "table" not in made.model.graph.initializers
    assert attribute(head, "bits") == (
        4 if kind in (Type.Q4_0, Type.Q4_1) and precision == "int4" else 8
    )
    matrix = table if kind is None else gguf(table, kind).numpy()
    found = in_file(head)
    e = without_head(made).run(ids)[0]
    if kind is None:
        assert relative(found, matrix) < 0.006
        assert relative(e, expected[1]) < 0.006
    else:
        assert np.array_equal(found.astype(np.float32), matrix)
        # The zero is taken to the middle in float32.
        np.testing.assert_allclose(e, expected[1], rtol=0, atol=2e-6)


def without_head(graph):
    """The graph as far as ONNX Runtime's own operators go: its second output."""
    (head,) = nodes(graph, "BlockLinear")
    logits = graph.model.graph.outputs.pop(0)
    graph.model.graph.remove([logits.producer(), head], safe=True)
    return graph


def test_a_source_of_4_bits_keeps_at_8_what_it_has_in_more(graph, normal):
    made = graph(_TWO, w=normal(40, 64), v=normal(24, 64))
    stored(made, "w", gguf(normal(40, 64), Type.Q4_0))
    quantize(made.model, "int4")
    assert [attribute(node, "bits") for node in nodes(made, "BlockLinear")] == [4, 8]


@pytest.mark.parametrize("bias", [False, True])
def test_packed_matrices_of_several_forms_become_several_products(graph, normal, bias):
    parts = [gguf(normal(24, 64), Type.Q4_1), gguf(normal(16, 64), Type.Q8_0)]
    weight = StackedWeight(parts)
    operands = {"b": normal(40)} if bias else {}
    made = graph(_BIASED if bias else _UNBIASED, w=weight.numpy(), **operands)
    stored(made, "w", weight)
    quantize(made.model, "int4")
    assert made.ops() == {"BlockLinear": 2, "Concat": 1, "Identity": 1} | (
        {"Add": 1} if bias else {}
    )
    for node, own in zip(nodes(made, "BlockLinear"), parts, strict=True):
        assert np.array_equal(in_file(node).astype(np.float32), own.numpy())
        assert part(node, "bias") is None
    (joined,) = nodes(made, "Concat")
    assert [value.producer() for value in joined.inputs] == nodes(made, "BlockLinear")
    if bias:
        assert np.array_equal(nodes(made, "Add")[0].inputs[1].const_value.numpy(), operands["b"])


def test_reordered_groups_reorder_the_activations(graph, rng, normal):
    groups = rng.permutation(np.arange(64) // 16)
    words = rng.integers(-(2**31), 2**31, (8, 40)).astype(np.int32)
    scales = rng.uniform(0.01, 0.1, (4, 40)).astype(np.float32)
    zeros = rng.integers(0, 16, (4, 40)).astype(np.uint8)
    weight = GptqWeight(words, scales, zeros, groups)
    assert weight.blocks() is None
    made = one(graph, 64, 40, weight)
    quantize(made.model, "int4")
    assert made.ops() == {"Gather": 1, "BlockLinear": 1, "Identity": 1}
    (product,), (gather,) = nodes(made, "BlockLinear"), nodes(made, "Gather")
    assert product.inputs[0] is gather.outputs[0]
    order = gather.inputs[1].const_value.numpy()
    found = in_file(product)
    assert np.array_equal(found.astype(np.float32), weight.numpy()[:, order])
    x = normal(3, 64)
    np.testing.assert_allclose(x[:, order] @ found.T, x @ weight.numpy().T, rtol=1e-4, atol=1e-4)


def test_a_row_has_the_same_bits_alone_and_among_others(graph, normal):
    made = one(graph, 192, 96, normal(96, 192))
    quantize(made.model, "fp32")
    x = normal(1, 33, 192)
    together = made.run({"x": x})[1][0]
    alone = [made.run({"x": x[:, row : row + 1]})[1][0, 0] for row in range(33)]
    assert np.array_equal(together, np.stack(alone))
