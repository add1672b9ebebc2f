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
    parts = ("scales", "zero_points", "offsets")
    equal = all(np.array_equal(getattr(found, p), getattr(expected, p)) for p in parts)
    return equal and np.array_equal(found.codes(), expected.codes())


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


def test_int8_is_within_half_a_step(values):
    blocks = quantize_int8(values)
    assert (blocks.bits, blocks.block_size, blocks.scales.shape) == (8, 32, (48, 6))
    assert (blocks.zero_points, blocks.offsets, blocks.zero) == (None, None, 128)
    error = np.abs(in_blocks(blocks.dequantize() - values))
    steps = np.abs(in_blocks(values)).max(axis=1, keepdims=True) / 127
    # Half a step, a little longer where its float16 is.
    assert (error <= steps / 2 * 1.001).all()
    assert np.sqrt((error**2).mean()) < 0.32 * steps.mean()


@pytest.mark.parametrize("size", [1e-7, 1e-3, 1, 1e4])
def test_int8_scales_are_halves_that_cut_nothing_off(values, size):
    blocks = quantize_int8(values * np.float32(size))
    largest = np.abs(in_blocks(values * np.float32(size))).max(axis=1)
    scales = blocks.scales.reshape(-1)
    assert np.array_equal(scales, scales.astype(np.float16))
    assert (scales * 127 >= largest).all()
    assert (
        np.nextafter(scales.astype(np.float16), np.float16(0)) * np.float32(127) < largest
    ).all()


def test_int8_rounds_both_signs_alike(values):
    assert np.array_equal(quantize_int8(-values).dequantize(), -quantize_int8(values).dequantize())


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
    scales, zeros = np.full((8, 2), 0.25, np.float32), np.full((8, 2), 6, np.uint8)
    stored = Blocks(4, 32, lambda: codes, scales, zeros)
    found = quantize_int4(stored.dequantize())
    np.testing.assert_allclose(found.dequantize(), stored.dequantize(), rtol=1e-6)


@pytest.mark.parametrize("rounding", [quantize_int8, quantize_int4])
@pytest.mark.parametrize("level", [0.0, 1e-42, 3.0, -3.0])
def test_constant_blocks(rounding, level):
    values = np.full((2, 64), level, np.float32)
    # As far as a scale in float16 goes.
    np.testing.assert_allclose(rounding(values).dequantize(), values, rtol=2**-10, atol=1e-40)


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
        (Type.Q4_1, 8, 8),
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
    assert carried.zero_points is None
    floating = kind is Type.Q4_1
    assert (carried.offsets is not None) == floating
    if taken == int(kind.name[1]):
        assert carried.zero == (0 if floating else 1 << (taken - 1))
    assert np.array_equal(carried.dequantize(), dequantize(data, kind))


def _q6_k(values):
    return np.zeros((values.shape[0], values.shape[1] // 256 * 210), np.uint8)


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_beside_offsets_stay_what_they_are(bits):
    codes = np.arange(64, dtype=np.uint8).reshape(1, 64) % 16
    scales, zeros = np.ones((1, 2), np.float32), np.array([[0, 5]], np.uint8)
    offsets = np.array([[1e-30, -7]], np.float32)
    stored = Blocks(4, 32, lambda: codes, scales, zeros, offsets)
    carried = fit(stored, bits)
    assert carried is not None
    assert carried.bits == bits
    assert carried.offsets is offsets
    if bits == 4:
        assert carried is stored
    else:
        assert (carried.zero_points, carried.zero) == (None, 128), "the codes are moved instead"
    assert np.array_equal(carried.dequantize(), stored.dequantize())


@pytest.mark.parametrize("zero", [0, 3, None])
def test_a_uniform_zero_in_more_bits(zero):
    codes = np.arange(64, dtype=np.uint8).reshape(1, 64) % 16
    stored = Blocks(4, 32, lambda: codes, np.ones((1, 2), np.float32), uniform_zero=zero)
    carried = fit(stored, 8)
    assert carried is not None
    assert carried.zero_points is None
    # The middle code stays in the middle.
    assert carried.zero - 128 == stored.zero - 8
    assert np.array_equal(carried.dequantize(), stored.dequantize())


@pytest.mark.parametrize(
    ("group", "size"), [(16, 16), (128, 128), (96, 32), (768, 256), (24, None)]
)
@pytest.mark.parametrize("bits", [4, 8])
def test_groups_of_any_size_are_expressed_exactly(group, size, bits):
    rng = np.random.default_rng(group)
    count = 1536 // group
    codes = rng.integers(0, 16, (4, group * count)).astype(np.uint8)
    stored = Blocks(
        4,
        group,
        lambda: codes,
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


def test_symmetric_int4_is_near_the_best_scale_of_either_sign(values):
    blocks = quantize_int4(values, symmetric=True)
    assert (blocks.zero_points, blocks.offsets, blocks.zero) == (None, None, 8)
    given = in_blocks(values)[:60]
    best = np.full(len(given), np.inf)
    for scale in np.concatenate([np.linspace(0.02, 0.6, 400), np.linspace(-0.6, -0.02, 400)]):
        steps = np.clip(np.rint(given / scale), -8, 7)
        best = np.minimum(best, ((given - scale * steps) ** 2).sum(1))
    errors = (in_blocks(blocks.dequantize() - values)[:60] ** 2).sum(1)
    assert errors.sum() <= 1.05 * best.sum()
    assert (blocks.scales < 0).any()


def test_weights_of_a_source_in_q4_0_are_found_again_by_symmetric_rounding(values):
    data = gguf_quantize(values, Type.Q4_0)
    stored = dequantize(data, Type.Q4_0).astype(np.float32)
    again = quantize(ArrayWeight(stored), 4, 32, "w", symmetric=True).dequantize()
    assert np.linalg.norm(again - stored) <= 2e-3 * np.linalg.norm(stored)
