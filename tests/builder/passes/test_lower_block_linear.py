"""BlockLinear lowered to ONNX Runtime's own operators: nodes, what is shared, and the outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import quantize as gguf_quantize

from enginewright.builder.passes.lower_block_linear import lower_block_linear
from enginewright.builder.passes.quantize import quantize
from enginewright.builder.source.gguf_file import GgufTensor
from enginewright.builder.source.gguf_weight import GgufWeight
from enginewright.builder.weight_tensor import WeightTensor
from enginewright.builder.weights import Blocks

_TWO = """
two (float[B, S, 64] x, float[40, 64] w, float[40] a, float[24, 64] v, float[24] b)
=> (float[B, S, 1] logits, float[B, S, 40] y, float[B, S, 24] z)
{
    axis = Constant <value_ints = [-1]> ()
    logits = ReduceMean (x, axis)
    y = enginewright.Linear (x, w, a)
    z = enginewright.Linear (x, v, b)
}
"""
_ONE = """
one (float[B, S, K] x, float[40, K] w) => (float[B, S, K] logits, float[B, S, 40] y)
{ logits = Identity (x) y = enginewright.Linear (x, w) }
"""


def gguf(values, kind):
    return GgufWeight(GgufTensor(kind, values.shape, gguf_quantize(values, kind)))


def nodes(graph, op_type):
    return [node for node in graph.model.graph if node.op_type == op_type]


def exact_activations(graph):
    """Ask for products in float32, so that only the weights' rounding is left."""
    for node in nodes(graph, "MatMulNBits"):
        node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)


def lowered(graph):
    """Lower, and check what holds of every graph."""
    count = graph.ops()["BlockLinear"]
    lower_block_linear(graph.model)
    assert count > 0
    assert not nodes(graph, "BlockLinear")
    assert graph.ops()["MatMulNBits"] == count
    unread = [name for name, value in graph.model.graph.initializers.items() if not value.uses()]
    assert not unread
    for product in nodes(graph, "MatMulNBits"):
        assert product.attributes["block_size"].as_int() == 16


def relative(found, expected):
    return np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean())


@pytest.fixture
def normal(rng):
    return lambda *shape: rng.normal(size=shape).astype(np.float32)


@pytest.fixture
def two(graph, normal):
    """Two products of one x by stored blocks, each with a bias."""

    def make(first, second):
        made = graph(_TWO, w=first.numpy(), a=normal(40), v=second.numpy(), b=normal(24))
        for name, weight in (("w", first), ("v", second)):
            made.model.graph.initializers[name].const_value = WeightTensor(weight, name)
        return made

    return make


@pytest.fixture
def one(graph):
    def make(weight):
        made = graph(_ONE.replace("K", str(weight.shape[1])), w=weight.numpy())
        made.model.graph.initializers["w"].const_value = WeightTensor(weight, "w")
        return made

    return make


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        (Type.Q4_0, "int4"),
        (Type.Q4_1, "int4"),
        (Type.Q4_0, "int8"),
        (Type.Q4_1, "int8"),
        (Type.Q8_0, "int8"),
    ],
)
def test_products_are_those_of_the_dequantized_weights(two, normal, kind, precision):
    made = two(gguf(normal(40, 64), kind), gguf(normal(24, 64), kind))
    x = {"x": normal(2, 3, 64)}
    expected = made.run(x)
    quantize(made.model, precision)
    lowered(made)
    for new, old in zip(made.run(x), expected, strict=True):
        assert relative(new, old) < 0.01, "activations are rounded to 8 bits"
    exact_activations(made)
    for new, old in zip(made.run(x), expected, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_1])
def test_readers_of_one_x_share_its_sums(two, normal, kind):
    made = two(gguf(normal(40, 64), kind), gguf(normal(24, 64), kind))
    quantize(made.model, "int4")
    assert made.ops() == {"BlockLinear": 2, "ReduceMean": 1, "Constant": 1}
    lowered(made)
    if kind is Type.Q4_0:
        assert not nodes(made, "ReduceSum"), "no offsets, and a zero in the middle"
        return
    (sums,) = nodes(made, "ReduceSum")
    by_offsets = nodes(made, "FusedMatMul")
    assert len(by_offsets) == 2
    assert all(node.inputs[0] is sums.outputs[0] for node in by_offsets)


def test_blocks_of_two_sizes_have_sums_of_their_own(stored_in, two, normal, rng):
    blocks = [
        Blocks(
            4,
            size,
            lambda rows=rows: (np.arange(rows * 64).reshape(rows, 64) % 16).astype(np.uint8),
            rng.uniform(0.5, 1, (rows, 64 // size)).astype(np.float32),
            offsets=rng.normal(size=(rows, 64 // size)).astype(np.float32),
        )
        for rows, size in ((40, 16), (24, 64))
    ]
    made = two(*(stored_in(each) for each in blocks))
    x = {"x": normal(2, 3, 64)}
    expected = made.run(x)
    quantize(made.model, "int4")
    lowered(made)
    assert len(nodes(made, "ReduceSum")) == 2
    exact_activations(made)
    for new, old in zip(made.run(x), expected, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 192])
@pytest.mark.parametrize("zero", ["points", 0, 5, None])
@pytest.mark.parametrize("offsets", [False, True])
def test_every_form_of_blocks(stored_in, one, normal, rng, bits, block, zero, offsets):
    shape = (40, 192 // block)
    codes = rng.integers(0, 1 << bits, (40, 192)).astype(np.uint8)
    points = rng.integers(0, 1 << bits, shape).astype(np.uint8) if zero == "points" else None
    weight = stored_in(
        Blocks(
            bits,
            block,
            lambda: codes,
            rng.uniform(0.01, 0.02, shape).astype(np.float16).astype(np.float32),
            points,
            rng.normal(size=shape).astype(np.float32) if offsets else None,
            zero if isinstance(zero, int) else None,
        )
    )
    made = one(weight)
    x = {"x": normal(2, 3, 192)}
    expected = made.run(x)[1]
    quantize(made.model, f"int{bits}")
    lowered(made)
    shifted = isinstance(zero, int)
    assert made.ops()["FusedMatMul"] == (1 if offsets or shifted else 0)
    exact_activations(made)
    np.testing.assert_allclose(made.run(x)[1], expected, rtol=1e-4, atol=1e-3)


def test_a_bias_stays_in_the_product(two, normal):
    made = two(gguf(normal(40, 64), Type.Q4_0), gguf(normal(24, 64), Type.Q4_0))
    biases = [made.model.graph.initializers[name] for name in "ab"]
    quantize(made.model, "int4")
    lowered(made)
    for product, bias in zip(nodes(made, "MatMulNBits"), biases, strict=True):
        assert product.inputs[5] is bias
    assert "Add" not in made.ops()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_row_has_the_same_bits_alone_and_among_others(one, normal, precision):
    values = normal(40, 192)
    made = one(gguf(values, Type.Q8_0) if precision == "int8" else gguf(values, Type.Q4_1))
    quantize(made.model, precision)
    lowered(made)
    x = normal(1, 34, 192)
    together = made.run({"x": x})[1][0]
    alone = [made.run({"x": x[:, row : row + 1]})[1][0, 0] for row in range(34)]
    assert np.array_equal(together, np.stack(alone))


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_1])
def test_whole_blocks_keep_their_size_and_scales(one, normal, kind):
    made, x = one(gguf(normal(40, 64), kind)), normal(2, 3, 64)
    expected = made.run({"x": x})[1]
    quantize(made.model, "int4")
    lower_block_linear(made.model, whole_blocks=True)
    [product] = nodes(made, "MatMulNBits")
    attributes = {name: each.as_int() for name, each in product.attributes.items()}
    assert attributes == {"N": 40, "K": 64, "bits": 4, "block_size": 32}
    assert product.inputs[1].const_value.shape == (40, 2, 16)
    assert not nodes(made, "Tile")
    np.testing.assert_allclose(made.run({"x": x})[1], expected, rtol=1e-4, atol=2e-5)
