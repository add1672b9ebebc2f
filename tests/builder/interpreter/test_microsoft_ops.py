"""ONNX Runtime's own ops, beside ONNX Runtime on the CPU."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

onnxruntime = pytest.importorskip("onnxruntime")

MICROSOFT = "com.microsoft"


def _theirs(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    model.graph.opset_imports[MICROSOFT] = 1
    model.graph.opset_imports[""] = 21
    for output in model.graph.outputs:
        output.type = output.type or ir.TensorType(ir.DataType.FLOAT)
    proto: onnx.ModelProto = ir.to_proto(model)
    proto.ir_version = 10
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)


@pytest.fixture
def compare(node_model, run_node):
    """``compare(op, arrays, attributes, outputs=1)``: both, output by output."""

    def run(op, arrays, attributes, outputs=1, domain=MICROSOFT):
        operands = [None if x is None else torch.from_numpy(np.array(x)) for x in arrays]
        model = node_model(op, operands, attributes, domain=domain, outputs=outputs)
        feeds = {f"x{at}": x for at, x in enumerate(arrays) if x is not None}
        theirs = _theirs(model, feeds)
        ours = run_node(op, operands, attributes, domain=domain, outputs=outputs)
        return list(zip((x.numpy() for x in ours), theirs, strict=True))

    return run


@pytest.mark.parametrize(("pasts", "news"), [((0, 0, 0), (7, 3, 5)), ((5, 11, 2), (1, 1, 1))])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "change",
    [{}, {"do_rotary": 1}, {"local_window_size": 4}, {"softcap": 3.0}, {"scale": 0.3}],
    ids=str,
)
def test_group_query_attention(compare, rng, pasts, news, packed, change):
    heads, groups, size, capacity, length = 4, 2, 16, 24, max(news)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    q, k, v = (normal(3, length, count * size) for count in (heads, groups, groups))
    operands = [np.concatenate([q, k, v], axis=-1), None, None] if packed else [q, k, v]
    totals = np.array(pasts) + np.array(news)
    tables = [normal(capacity, size // 2) for _ in range(2)] if "do_rotary" in change else []
    arrays = [
        *operands,
        normal(3, groups, capacity, size),
        normal(3, groups, capacity, size),
        (totals - 1).astype(np.int32),
        np.array(max(totals), np.int32),
        *tables,
    ]
    attributes = {"num_heads": heads, "kv_num_heads": groups, **change}
    found = compare("GroupQueryAttention", arrays, attributes, outputs=3)
    for row, (past, new) in enumerate(zip(pasts, news, strict=True)):
        ours, theirs = found[0]
        np.testing.assert_allclose(ours[row, :new], theirs[row, :new], rtol=1e-4, atol=1e-5)
        for ours, theirs in found[1:]:
            real = np.s_[row, :, : past + new]
            np.testing.assert_allclose(ours[real], theirs[real], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_matmul_n_bits(compare, rng, bits, zeros):
    rows, inputs, size = 6, 64, 16
    blocks = inputs // size
    codes = rng.integers(0, 256, (rows, blocks, size * bits // 8), dtype=np.uint8)
    scales = rng.random((rows, blocks)).astype(np.float32)
    points = rng.integers(0, 256, (rows, blocks * bits // 8), dtype=np.uint8)
    arrays = [rng.normal(size=(3, inputs)).astype(np.float32), codes, scales]
    arrays += [points] if zeros else []
    attributes = {"K": inputs, "N": rows, "bits": bits, "block_size": size}
    ((ours, theirs),) = compare("MatMulNBits", arrays, attributes)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_gather_block_quantized(compare, rng, bits, zeros):
    rows, inputs, size = 6, 64, 16
    blocks = inputs // size
    table = rng.integers(0, 256, (rows, inputs * bits // 8), dtype=np.uint8)
    scales = rng.random((rows, blocks)).astype(np.float32)
    indices = np.array([[5, 0], [2, 2]], np.int64)
    arrays = [table, indices, scales]
    if zeros:
        arrays.append(rng.integers(0, 256, (rows, blocks * bits // 8), dtype=np.uint8))
    attributes = {"bits": bits, "block_size": size, "gather_axis": 0, "quantize_axis": 1}
    ((ours, theirs),) = compare("GatherBlockQuantized", arrays, attributes)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_norms(compare, rng):
    x, skip, scale = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 8), (2, 3, 8), (8,)))
    ((ours, theirs),) = compare(
        "SimplifiedLayerNormalization", [x, scale], {"epsilon": 1e-3}, domain=""
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    found = compare("SkipSimplifiedLayerNormalization", [x, skip, scale], {"epsilon": 1e-3}, 4)
    for ours, theirs in (found[0], found[3]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
