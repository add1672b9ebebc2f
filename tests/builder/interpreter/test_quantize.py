"""Rounding to few bits and back, beside ONNX's reference evaluator and plain numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from enginewright.builder.interpreter.errors import GraphError
from enginewright.builder.interpreter.ops.rounding import round_to

KINDS = {
    ir.DataType.INT8: np.arange(-128, 128),
    ir.DataType.UINT8: np.arange(256),
    ir.DataType.INT4: np.arange(-8, 8),
    ir.DataType.UINT4: np.arange(16),
    ir.DataType.FLOAT8E4M3FN: np.array([0, 0.0625, 1.125, -448, 3.25, -0.001953125]),
    ir.DataType.FLOAT4E2M1: np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -6]),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_values_of_a_type_stay_what_they_are(kind):
    values = torch.from_numpy(KINDS[kind].astype(np.float32))
    assert torch.equal(round_to(values, kind).float(), values)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_rounding_is_to_the_nearest_value_and_saturates(kind):
    legal = {float(v) for v in KINDS[kind]}
    if kind == ir.DataType.FLOAT8E4M3FN:
        bits = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float()
        legal = set(bits[~bits.isnan()].tolist())
    if kind == ir.DataType.FLOAT4E2M1:
        legal |= {-v for v in legal}
    rng = np.random.default_rng(2)
    values = rng.normal(size=400).astype(np.float32) * np.float32(max(legal) / 2)
    wanted = [min(legal, key=lambda each: abs(each - v)) for v in values.tolist()]
    assert round_to(torch.from_numpy(values), kind).float().tolist() == wanted


def test_ties_go_to_even():
    x = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert round_to(x, ir.DataType.FLOAT4E2M1).float().tolist() == [0, 1, 1, 2, 2, 4, 4]
    assert round_to(torch.tensor([0.5, 1.5, 2.5]), ir.DataType.INT8).tolist() == [0, 2, 2]


@pytest.mark.parametrize("scale", [np.float16, np.float32])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("granularity", ["tensor", "axis", "block"])
def test_dequantize_linear(kind, granularity, scale, as_onnx, node_model, run_node):
    rng = np.random.default_rng(4)
    x = as_onnx(rng.choice(KINDS[kind], size=(6, 8)), kind)
    shape, attributes = {
        "tensor": ((), {}),
        "axis": ((6,), {"axis": 0}),
        "block": ((6, 2), {"axis": 1, "block_size": 4}),
    }[granularity]
    scales = np.abs(rng.normal(size=shape)).astype(scale)
    operands = [x, torch.from_numpy(np.array(scales))]
    model = node_model("DequantizeLinear", operands, attributes)
    (wanted,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x1": scales})
    (found,) = run_node("DequantizeLinear", operands, attributes)
    assert found.numpy().dtype == scale
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0 if scale == np.float16 else 1e-6)


@pytest.mark.parametrize("kind", [ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN])
def test_quantize_linear_along_an_axis(kind, node_model, run_node):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(6, 8)).astype(np.float32)
    scales = np.abs(rng.normal(size=8)).astype(np.float32)
    operands = [torch.from_numpy(x), torch.from_numpy(scales)]
    attributes = {"axis": 1, "output_dtype": kind.value}
    model = node_model("QuantizeLinear", operands, attributes)
    (wanted,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x0": x, "x1": scales})
    (found,) = run_node("QuantizeLinear", operands, attributes)
    np.testing.assert_array_equal(found.float().numpy(), wanted.astype(np.float32))


def test_a_zero_point_gives_its_type(as_onnx, run_node):
    zero = as_onnx(np.array(3.0), ir.DataType.INT4)
    x, scale = torch.tensor([-9.0, 0.0, 1.0, 9.0]), torch.tensor(0.5)
    (y,) = run_node("QuantizeLinear", [x, scale, zero])
    assert y.tolist() == [-8, 3, 5, 7]
    (back,) = run_node(
        "DequantizeLinear", [as_onnx(np.array([-8.0, 3, 5]), ir.DataType.INT4), scale, zero]
    )
    assert back.tolist() == [-5.5, 0.0, 1.0]


def test_scales_that_do_not_fit_are_an_error(run_node):
    x = torch.zeros(4, 8, dtype=torch.int8)
    with pytest.raises(GraphError, match=r"\(DequantizeLinear\): scales \[3\] for axis 0"):
        run_node("DequantizeLinear", [x, torch.ones(3)], {"axis": 0})
