"""Rounding to blocks, and blocks that are carried over with their values unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from gguf.quants import quantize as gguf_quantize

from enginewright.builder import quantization
from enginewright.builder.quantization import carry, fit, quantize, quantize_int4, quantize_int8
from enginewright.builder.source.gguf_file import GgufTensor
from enginewright.builder.source.gguf_weight import GgufWeight
from enginewright.builder.weights import ArrayWeight, Blocks
from enginewright.runtime.errors import SourceError


@pytest.fixture
def values():
    return np.random.default_rng(3).normal(size=(48, 192)).astype(np.float32)


def same(found: Blocks, expected: Blocks) -> bool:
    parts = ("codes", "scales", "zero_points", "offsets")
    return all(np.array_equal(getattr(found, p), getattr(expected, p)) for p in parts)


def in_blocks(values, size=32):
    return values.reshape(-1, size)


def round_to_nearest(blocks):
    """The plain asymmetric rounding to 4 bits over the range of each block and zero."""
    low, high = np.minimum(blocks.min(1), 0), np.maximum(blocks.max(1), 0)
    scale = ((high - low) / 15)[:, None]
    zero = np.rint(-low[:, None] / scale)
    return scale * (np.clip(np.rint(blocks / scale) + zero, 0, 15) - zero)


def least_errors(blocks):
    """The squared errors of the best of a dense set of grids, tried one by one."""
    best = np.full(len(blocks), np.inf)
    for zero in range(16):
        for scale in np.linspace(0.02, 0.6, 400):
            steps = np.clip(np.rint(blocks / scale), -zero, 15 - zero)
            best = np.minimum(best, ((blocks - scale * steps) ** 2).sum(1))
    return best


def test_int8_is_within_a_step(values):
    blocks = quantize_int8(values)
    assert (blocks.bits, blocks.block_size, blocks.scales.shape) == (8, 32, (48, 6))
    error = np.abs(in_blocks(blocks.dequantize() - values))
    spans = np.ptp(np.pad(in_blocks(values), ((0, 0), (0, 1))), axis=1, keepdims=True)
    # Half a step, and up to another half at an end, where rounding the zero cuts it off.
    assert (error <= spans / 255 * 1.001).all()
    assert np.sqrt((error**2).mean()) < 0.32 * (spans / 255).mean()


@pytest.mark.parametrize("freedom", [3, 1000], ids=["heavy tails", "normal"])
def test_int4_is_better_than_rounding_to_nearest(freedom):
    values = np.random.default_rng(5).standard_t(freedom, (64, 192)).astype(np.float32)
    found = ((quantize_int4(values).dequantize() - values) ** 2).mean()
    nearest = ((round_to_nearest(in_blocks(values)) - in_blocks(values)) ** 2).mean()
    assert found < 0.95 * nearest


def test_int4_is_close_to_the_best_grid(values):
    blocks = in_blocks(values[:8])
    found = ((in_blocks(quantize_int4(values[:8]).dequantize()) - blocks) ** 2).sum()
    assert found < 1.05 * least_errors(blocks).sum()


def test_int4_finds_a_grid_that_values_lie_on():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 16, (8, 64)).astype(np.uint8)
    codes[:, ::32], codes[:, 1::32] = 0, 15
    stored = Blocks(4, 32, codes, np.full((8, 2), 0.25, np.float32), np.full((8, 2), 6, np.uint8))
    found = quantize_int4(stored.dequantize())
    np.testing.assert_allclose(found.dequantize(), stored.dequantize(), rtol=1e-6)


@pytest.mark.parametrize("rounding", [quantize_int8, quantize_int4])
@pytest.mark.parametrize("level", [0.0, 1e-42, 3.0, -3.0])
def test_constant_blocks(rounding, level):
    values = np.full((2, 64), level, np.float32)
    np.testing.assert_allclose(rounding(values).dequantize(), values, rtol=1e-6, atol=1e-40)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_are_rounded_alike_in_any_chunks(monkeypatch, values, bits):
    whole = quantize(ArrayWeight(values), bits, 32, "w")
    monkeypatch.setattr(quantization, "_CHUNK_VALUES", 192 * 3)
    assert same(quantize(ArrayWeight(values), bits, 32, "w"), whole)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_name(values, bits, wrong):
    values[7, 5] = wrong
    with pytest.raises(SourceError, match=r"layers\.0\.weight.*not finite"):
        quantize(ArrayWeight(values), bits, 32, "layers.0.weight")


@pytest.mark.parametrize(("inputs", "size"), [(64, 32), (48, 16), (20, None)])
def test_block_size_divides_the_inputs(inputs, size):
    assert quantization.block_size_for(inputs) == size


@pytest.mark.parametrize(
    ("kind", "bits", "taken"),
    [
        (Type.Q4_0, 4, 4),
        (Type.Q4_0, 8, 8),
        (Type.Q4_1, 4, 4),
        (Type.Q8_0, 8, 8),
        (Type.Q4_1, 8, None),
        (Type.Q8_0, 4, None),
        (Type.Q6_K, 8, None),
    ],
)
def test_gguf_blocks_keep_every_bit_of_their_values(kind, bits, taken):
    values = np.random.default_rng(9).normal(size=(16, 256)).astype(np.float32)
    data = gguf_quantize(values, kind) if kind is not Type.Q6_K else _q6_k(values)
    carried = carry(GgufWeight(GgufTensor(kind, values.shape, data)), bits)
    if taken is None:
        assert carried is None
        return
    assert carried is not None
    assert carried.bits == taken
    assert carried.zero_points is None, "centred, so that activations lose the least"
    assert np.array_equal(carried.dequantize(), dequantize(data, kind))


def _q6_k(values):
    return np.zeros((values.shape[0], values.shape[1] // 256 * 210), np.uint8)


def test_an_offset_that_float32_cannot_move_stays_where_it_is():
    codes = np.arange(64, dtype=np.uint8).reshape(1, 64) % 16
    scales, zeros = np.ones((1, 2), np.float32), np.zeros((1, 2), np.uint8)
    stored = Blocks(4, 32, codes, scales, zeros, np.array([[1e-30, -7]], np.float32))
    carried = fit(stored, 4)
    assert carried is not None
    assert carried.zero_points is not None
    assert carried.offsets is not None
    assert carried.zero_points.tolist() == [[0, 8]]
    assert carried.offsets.tolist() == [[np.float32(1e-30), 1]]
    assert np.array_equal(carried.dequantize(), stored.dequantize())


@pytest.mark.parametrize(
    ("group", "size"), [(16, 16), (128, 128), (96, 32), (768, 256), (24, None)]
)
@pytest.mark.parametrize("bits", [4, 8])
def test_groups_of_any_size_are_expressed_exactly(group, size, bits):
    rng = np.random.default_rng(group)
    count = 1536 // group
    stored = Blocks(
        4,
        group,
        rng.integers(0, 16, (4, group * count)).astype(np.uint8),
        rng.uniform(0.01, 0.1, (4, count)).astype(np.float32),
        rng.integers(0, 16, (4, count)).astype(np.uint8),
    )
    carried = fit(stored, bits)
    if size is None:
        assert carried is None
        return
    assert carried is not None
    assert (carried.bits, carried.block_size) == (bits, size)
    assert np.array_equal(carried.dequantize(), stored.dequantize())
