"""Matrices in the formats of GPUs: what the parts mean, against plain arithmetic."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from enginewright.builder.block_tensor import Latest
from enginewright.builder.device_weights import (
    DeviceMatrix,
    DeviceTensor,
    Form,
    int4_parts,
    rounded_parts,
)
from enginewright.builder.weights import ArrayWeight, Blocks
from enginewright.runtime.errors import SourceError

ROWS, INPUTS = 24, 64


@pytest.fixture
def values() -> np.ndarray:
    values = np.random.default_rng(3).normal(size=(ROWS, INPUTS)).astype(np.float32)
    values[5] = 0
    values[6, :32] *= 1e-4
    return values


def _tensors(form: Form, parts) -> dict[str, DeviceTensor]:
    matrix = DeviceMatrix(form, lambda: parts, Latest())
    return {name: DeviceTensor(matrix, name, name) for name in parts}


def _meaning(form: Form, tensors: dict[str, DeviceTensor]) -> np.ndarray:
    told = {name: tensor.numpy().astype(np.float32) for name, tensor in tensors.items()}
    if form.turned:
        told = {name: array.T for name, array in told.items()}
    codes, scales = told["codes"], told["scales"]
    if "scale" in tensors:
        scales = scales * np.float32(tensors["scale"].numpy())
    if form.block_size == 0:
        return codes * scales[:, None]
    blocks = codes.reshape(len(codes), -1, form.block_size) * scales[..., None]
    if "corrections" in tensors:
        blocks = blocks + told["corrections"][..., None]
    return blocks.reshape(codes.shape)


@pytest.mark.parametrize(
    ("kind", "block_size", "error"),
    [
        ("int8", 0, 0.01),
        ("fp8", 0, 0.03),
        ("int4", 32, 0.1),
        ("int4", 16, 0.08),
        ("nvfp4", 16, 0.1),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_rounded(values, kind, block_size, error, turned):
    form = Form(kind, values.shape, block_size, turned=turned)
    tensors = _tensors(form, rounded_parts(ArrayWeight(values), form, "w"))
    for tensor in tensors.values():
        assert tensor.numpy().shape == tuple(tensor.shape)
        assert len(tensor.tobytes()) == tensor.nbytes
    got = _meaning(form, tensors)
    assert np.linalg.norm(got - values) <= error * np.linalg.norm(values)
    np.testing.assert_array_equal(got[5], 0)


def test_types_and_sizes(values):
    form = Form("nvfp4", values.shape, 16)
    tensors = _tensors(form, rounded_parts(ArrayWeight(values), form, "w"))
    kinds = {name: (tensor.dtype, tensor.nbytes) for name, tensor in tensors.items()}
    assert kinds == {
        "codes": (ir.DataType.FLOAT4E2M1, ROWS * INPUTS // 2),
        "scales": (ir.DataType.FLOAT8E4M3FN, ROWS * INPUTS // 16),
        "scale": (ir.DataType.FLOAT16, 2),
    }


def test_numbers_of_a_format_are_kept_exactly():
    steps = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    values = np.tile(np.concatenate([steps, -steps]), (ROWS, INPUTS // 16))
    form = Form("nvfp4", values.shape, 16)
    parts = rounded_parts(ArrayWeight(448 * values), form, "w")
    np.testing.assert_array_equal(_meaning(form, _tensors(form, parts)), 448 * values)
    form = Form("fp8", values.shape)
    eights = (values * 448 / 6).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    parts = rounded_parts(ArrayWeight(eights), form, "w")
    np.testing.assert_array_equal(_meaning(form, _tensors(form, parts)), eights)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("case", ["middle", "uniform", "zeros", "offsets"])
def test_stored_blocks_mean_what_they_meant(case, turned):
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 16, (ROWS, INPUTS)).astype(np.uint8)
    shape = (ROWS, INPUTS // 32)
    scales = rng.normal(size=shape).astype(np.float16).astype(np.float32)
    zeros = rng.integers(0, 16, shape).astype(np.uint8) if case == "zeros" else None
    offsets = rng.normal(size=shape).astype(np.float16).astype(np.float32)
    blocks = Blocks(
        4,
        32,
        lambda: codes,
        scales,
        zeros,
        offsets if case == "offsets" else None,
        uniform_zero=0 if case in ("uniform", "offsets") else None,
    )
    parts = int4_parts(blocks)
    assert ("corrections" in parts) == (case != "middle")
    form = Form("int4", (ROWS, INPUTS), 32, case != "middle", turned=turned)
    got = _meaning(form, _tensors(form, parts))
    if case == "middle":
        np.testing.assert_array_equal(got, blocks.dequantize())
    else:  # the corrections are rounded to float16
        np.testing.assert_allclose(got, blocks.dequantize(), rtol=0, atol=0.02)


def test_blocks_whose_zeros_are_all_the_middle_need_no_corrections():
    codes, scales = np.zeros((2, 32), np.uint8), np.ones((2, 1), np.float32)
    blocks = Blocks(4, 32, lambda: codes, scales, np.full((2, 1), 8, np.uint8))
    assert "corrections" not in int4_parts(blocks)


@pytest.mark.parametrize("kind", ["int8", "fp8", "nvfp4"])
def test_a_damaged_matrix_is_refused_by_name(values, kind):
    values[3, 3] = np.nan
    form = Form(kind, values.shape, 16 if kind == "nvfp4" else 0)
    with pytest.raises(SourceError, match=r"layer\.w: holds values that are not finite"):
        rounded_parts(ArrayWeight(values), form, "layer.w")
