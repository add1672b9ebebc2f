"""The shared cases: the numpy reference over any blocks, the eager op, and GroupQueryAttention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from enginewright.builder.passes.lower_attention import lower_attention
from enginewright.plugins.attention.cases import CASES, LONGEST, Case
from enginewright.plugins.attention.contract import DOMAIN, OP_TYPE
from enginewright.plugins.attention.export import cached_attention as eager
from enginewright.plugins.attention.reference import Rotary
from enginewright.plugins.attention.reference import cached_attention as reference

CAPACITY = LONGEST
NO_ROTARY = "the op of the export has no rotary inputs"
ONE_ROW = "GroupQueryAttention extends one row at a time"


def extends_many(case: Case) -> bool:
    return len(case.pasts) > 1 and max(case.news) > 1 and max(case.pasts) > 0


@dataclass
class Tensors:
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    k_cache: np.ndarray
    v_cache: np.ndarray
    past: np.ndarray
    new: np.ndarray
    rotary: Rotary | None
    sinks: np.ndarray | None


@pytest.fixture(params=CASES, ids=str)
def case(request) -> Case:
    return request.param


@pytest.fixture
def tensors(case: Case) -> Tensors:
    rng = np.random.default_rng(11)
    rows, length = len(case.pasts), max(case.news)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    angles = np.arange(CAPACITY)[:, None] / 10.0 ** np.linspace(0, 2, case.rotary_dim // 2)
    return Tensors(
        q=normal(rows, length, case.heads * case.size),
        k=normal(rows, length, case.kv_heads * case.size),
        v=normal(rows, length, case.kv_heads * case.size),
        k_cache=normal(rows, case.kv_heads, CAPACITY, case.size),
        v_cache=normal(rows, case.kv_heads, CAPACITY, case.size),
        past=np.array(case.pasts, np.int32),
        new=np.array(case.news, np.int32),
        rotary=Rotary(np.cos(angles, dtype=np.float32), np.sin(angles, dtype=np.float32))
        if case.rotary_dim
        else None,
        sinks=normal(case.heads) if case.sinks else None,
    )


def _reference(
    case: Case, t: Tensors, block_size: int = CAPACITY
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The reference over the cache cut into blocks, put together again afterwards."""
    rows, per_row = len(case.pasts), CAPACITY // block_size
    order = np.random.default_rng(3).permutation(rows * per_row)
    table = order.reshape(rows, per_row).astype(np.int32)
    pools = [_to_blocks(cache, table, block_size) for cache in (t.k_cache, t.v_cache)]
    out = reference(t.q, t.k, t.v, *pools, table, t.past, t.new, case.attributes, t.rotary, t.sinks)
    return out, *(_from_blocks(pool, table) for pool in pools)


def _to_blocks(cache: np.ndarray, table: np.ndarray, size: int) -> np.ndarray:
    pool = np.zeros((table.size, cache.shape[1], size, cache.shape[3]), cache.dtype)
    for row, blocks in enumerate(table):
        for index, block in enumerate(blocks):
            pool[block] = cache[row, :, index * size : (index + 1) * size]
    return pool


def _from_blocks(pool: np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.stack([np.concatenate(list(pool[blocks]), axis=1) for blocks in table])


def _assert_close(case: Case, t: Tensors, ours, theirs) -> None:
    """Outputs and cache agree wherever they are defined."""
    for row, (past, new) in enumerate(zip(case.pasts, case.news, strict=True)):
        np.testing.assert_allclose(ours[0][row, :new], theirs[0][row, :new], rtol=2e-5, atol=2e-5)
        for mine, other in zip(ours[1:], theirs[1:], strict=True):
            total = past + new
            np.testing.assert_allclose(
                mine[row, :, :total], other[row, :, :total], rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_the_reference_does_not_depend_on_the_block_size(case, tensors, block_size):
    whole, paged = _reference(case, tensors), _reference(case, tensors, block_size)
    for a, b in zip(whole, paged, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_eager_op_is_the_reference(case, tensors):
    if case.rotary_dim:
        pytest.skip(NO_ROTARY)
    t, a = tensors, case.attributes
    table = np.arange(len(case.pasts), dtype=np.int32)[:, None]
    arrays = [torch.from_numpy(x) for x in (t.q, t.k, t.v, t.k_cache, t.v_cache)]
    lengths = [torch.from_numpy(x) for x in (table, t.past, t.new)]
    sinks = None if t.sinks is None else torch.from_numpy(t.sinks)
    ours = eager(*arrays, *lengths, sinks, a.num_heads, a.kv_heads, a.scale, a.window, a.softcap)
    _assert_close(case, t, [x.numpy() for x in ours], _reference(case, t))


def test_group_query_attention_over_slots(case, tensors):
    t = tensors
    feeds = {
        "q": t.q,
        "k": t.k,
        "v": t.v,
        "k_cache": t.k_cache,
        "v_cache": t.v_cache,
        "past_lengths": t.past,
        "new_lengths": t.new,
        "input_ids": np.zeros(t.q.shape[:2], np.int64),
    }
    session = onnxruntime.InferenceSession(_lowered(case, t))
    if extends_many(case):
        with pytest.raises(InvalidArgument, match="batch_size must be 1"):
            session.run(None, feeds)
        pytest.skip(ONE_ROW)
    _assert_close(case, t, session.run(None, feeds), _reference(case, t))


def _lowered(case: Case, t: Tensors) -> bytes:
    """A model of one attention node, lowered for the CPU."""
    a = case.attributes
    shapes = {
        "q": (ir.DataType.FLOAT, ["B", "S", case.heads * case.size]),
        "k": (ir.DataType.FLOAT, ["B", "S", case.kv_heads * case.size]),
        "v": (ir.DataType.FLOAT, ["B", "S", case.kv_heads * case.size]),
        "k_cache": (ir.DataType.FLOAT, ["B", case.kv_heads, "C", case.size]),
        "v_cache": (ir.DataType.FLOAT, ["B", case.kv_heads, "C", case.size]),
        "block_table": (ir.DataType.INT32, ["B", 1]),
        "past_lengths": (ir.DataType.INT32, ["B"]),
        "new_lengths": (ir.DataType.INT32, ["B"]),
    }
    step = ir.Value(
        name="input_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["B", "S"])
    )
    inputs = [
        ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        for name, (dtype, shape) in shapes.items()
    ]
    tables = [t.rotary.cos, t.rotary.sin] if t.rotary else [None, None]
    extras = [*tables, t.sinks]
    names = ("cos", "sin", "sinks")
    constants = []
    for name, array in zip(names, extras, strict=True):
        if array is None:
            constants.append(None)
            continue
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
        value.const_value = tensor
        constants.append(value)
    node = ir.node(
        OP_TYPE,
        [*inputs, *constants],
        {
            "num_heads": a.num_heads,
            "kv_heads": a.kv_heads,
            "scale": a.scale,
            "window": a.window,
            "softcap": a.softcap,
            "interleaved": a.interleaved,
        },
        domain=DOMAIN,
        num_outputs=3,
    )
    for output, name in zip(node.outputs, ("out", "k_out", "v_out"), strict=True):
        output.name, output.type = name, ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [*inputs, step],
        node.outputs,
        nodes=[node],
        initializers=[value for value in constants if value is not None],
        opset_imports={"": 20, DOMAIN: 1},
        name="attention",
    )
    model = ir.Model(graph, ir_version=10)
    lower_attention(model)
    assert [n.op_type for n in model.graph if n.domain] == ["GroupQueryAttention"]
    return ir.to_proto(model).SerializeToString()
