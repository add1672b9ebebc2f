"""Each standard op beside ONNX's own reference evaluator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

_RNG = np.random.default_rng(3)


def _floats(*shape: int) -> np.ndarray:
    return _RNG.normal(size=shape).astype(np.float32)


def _positive(*shape: int) -> np.ndarray:
    return np.abs(_floats(*shape)) + np.float32(0.1)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _scalar(value: int) -> np.ndarray:
    return np.array(value, np.int64)


@dataclass
class Case:
    """A node: its operands, attributes, number of outputs."""

    op: str
    operands: list[np.ndarray | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1

    def __str__(self) -> str:
        return "-".join([self.op, *(f"{k}={v}" for k, v in self.attributes.items())])


_A, _B, _M = _floats(2, 3, 8), _floats(3, 8), _floats(2, 8, 5)
_BOOLS = np.array([[True, False, True], [False, False, True]])
_CACHE, _NEW = _floats(2, 3, 7, 4), _floats(2, 3, 2, 4)
_HEADS = _floats(2, 3, 5, 8)
_ANGLES = _floats(16, 4)
_POSITIONS = np.array([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]], np.int64)

CASES = [
    *(Case(op, [_A, _B]) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    Case("Div", [_ints(7, -7, 9), _ints(2, 2, -4)]),
    Case("Mod", [_ints(7, -7, 9), _ints(2, 3, -4)]),
    Case("Mod", [_A, _B], {"fmod": 1}),
    Case("Max", [_A, _B, _floats(8)]),
    Case("Pow", [_positive(2, 3), np.array(2.0, np.float32)]),
    *(Case(op, [_A]) for op in ("Neg", "Abs", "Exp", "Erf", "Cos", "Sin", "Round")),
    *(Case(op, [_positive(2, 3)]) for op in ("Sqrt", "Reciprocal", "Log")),
    *(Case(op, [_A]) for op in ("Tanh", "Sigmoid", "Relu", "Swish", "Gelu")),
    Case("Gelu", [_A], {"approximate": "tanh"}),
    Case("Swish", [_A], {"alpha": 1.702}),
    Case("Clip", [_A, np.array(-0.5, np.float32), np.array(0.25, np.float32)]),
    Case("Cast", [_A], {"to": ir.DataType.FLOAT16.value}),
    Case("Cast", [10 * _A], {"to": ir.DataType.INT32.value}),
    Case("CastLike", [_A, np.zeros(1, np.float16)]),
    Case("Where", [_BOOLS, _floats(2, 3), _floats(2, 3)]),
    *(
        Case(op, [_ints(1, 2, 3), _ints(3, 2, 1)])
        for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
    ),
    *(Case(op, [_BOOLS, _BOOLS[:, ::-1].copy()]) for op in ("And", "Or")),
    Case("Not", [_BOOLS]),
    Case("Identity", [_A]),
    Case("Shape", [_A]),
    Case("Shape", [_A], {"start": 1, "end": -1}),
    Case("Size", [_A]),
    Case("Reshape", [_A, _ints(0, -1, 4)]),
    Case("Flatten", [_A], {"axis": 2}),
    Case("Transpose", [_A]),
    Case("Transpose", [_A], {"perm": [1, 0, 2]}),
    Case("Squeeze", [_floats(1, 3, 1), _ints(0, -1)]),
    Case("Squeeze", [_floats(1, 3, 1)]),
    Case("Unsqueeze", [_B, _ints(0, -1)]),
    Case("Expand", [_B, _ints(2, 1, 8)]),
    Case("Expand", [_floats(3, 1), _ints(2, 1, 6)]),
    Case("Tile", [_B, _ints(2, 3)]),
    Case("Concat", [_A, _floats(2, 1, 8)], {"axis": 1}),
    Case("Split", [_A, _ints(2, 5, 1)], {"axis": -1}, 3),
    Case("Split", [_A], {"axis": 2, "num_outputs": 3}, 3),
    Case("Slice", [_A, _ints(1, -3), _ints(9, -1), _ints(1, -1)]),
    Case("Slice", [_A, _ints(0), _ints(8), _ints(2), _ints(3)]),
    Case("Range", [_scalar(2), _scalar(11), _scalar(3)]),
    Case("ConstantOfShape", [_ints(2, 3)]),
    Case("Gather", [_A, np.array([[0, -1], [2, 1]], np.int64)], {"axis": 1}),
    Case("Gather", [_A, _scalar(1)]),
    Case("GatherElements", [_B, np.array([[0, -1], [2, 1], [0, 0]], np.int64)], {"axis": 1}),
    Case("Trilu", [_B]),
    Case("Trilu", [_B, _scalar(1)], {"upper": 0}),
    Case("CumSum", [_A, _scalar(1)]),
    Case("MatMul", [_A, _M]),
    Case("MatMul", [_A, _M[0]]),
    Case("Gemm", [_B, _floats(8, 5), _floats(5)], {"alpha": 0.5, "beta": 2.0}),
    Case("Gemm", [_floats(8, 3), _floats(5, 8)], {"transA": 1, "transB": 1}),
    *(
        Case(op, [_A, _ints(-1)], attributes)
        for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
        for attributes in ({}, {"keepdims": 0})
    ),
    Case("ReduceSum", [_A]),
    Case("ReduceSum", [_A], {"noop_with_empty_axes": 1}),
    Case("Softmax", [_A], {"axis": 1}),
    Case("TopK", [_A, _ints(2)], {"axis": -1}, 2),
    Case("TopK", [_A, _ints(1)], {"axis": 0, "largest": 0}, 2),
    Case("LayerNormalization", [_A, _floats(8), _floats(8)], {"epsilon": 1e-3}),
    Case("RMSNormalization", [_A, _floats(8)], {"epsilon": 1e-3}),
    Case("RMSNormalization", [_A, _floats(3, 8)], {"axis": 1}),
    Case("TensorScatter", [_CACHE, _NEW, _ints(0, 5)], {"axis": 2}),
    Case("TensorScatter", [_CACHE, _NEW]),
    Case("RotaryEmbedding", [_HEADS, _ANGLES, _ANGLES, _POSITIONS]),
    Case("RotaryEmbedding", [_HEADS, _ANGLES, _ANGLES, _POSITIONS], {"interleaved": 1}),
    Case(
        "RotaryEmbedding",
        [_HEADS, _ANGLES[:, :2], _ANGLES[:, 2:], _POSITIONS],
        {"rotary_embedding_dim": 4},
    ),
    Case(
        "RotaryEmbedding",
        [_floats(2, 5, 24), _ANGLES[:10].reshape(2, 5, 4), _ANGLES[6:].reshape(2, 5, 4)],
        {"num_heads": 3},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_op_is_what_onnx_says(case: Case, node_model, run_node):
    operands = [None if x is None else torch.from_numpy(x.copy()) for x in case.operands]
    model = node_model(case.op, operands, case.attributes, outputs=case.outputs)
    feeds = {f"x{at}": x for at, x in enumerate(case.operands) if x is not None}
    wanted = ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)
    found = run_node(case.op, operands, case.attributes, outputs=case.outputs)
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.numpy().dtype == theirs.dtype
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_product_of_halves_is_summed_in_float32_and_rounded_once(kind, run_node):
    torch.manual_seed(1)
    a, b = torch.randn(3, 700).to(kind), torch.randn(700, 4).to(kind)
    (y,) = run_node("MatMul", [a, b])
    assert y.dtype == kind
    assert torch.equal(y, (a.double() @ b.double()).float().to(kind))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_an_elementwise_op_of_halves_is_rounded_to_them(kind, run_node):
    torch.manual_seed(1)
    a, b = torch.randn(50).to(kind), torch.randn(50).to(kind)
    for op, exact in (("Mul", a.double() * b.double()), ("Add", a.double() + b.double())):
        (y,) = run_node(op, [a, b])
        assert torch.equal(y, exact.to(kind))


def test_the_norms_of_a_half_are_computed_in_float32(run_node):
    x = torch.full((1, 512), 300.0, dtype=torch.float16)  # the squares overflow float16
    (y,) = run_node("RMSNormalization", [x, torch.ones(512, dtype=torch.float16)])
    assert torch.equal(y, torch.ones_like(y))
