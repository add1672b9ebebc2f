"""Products and reductions. Sums are float32 whatever the type, and rounded to it once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from enginewright.builder.interpreter.call import Call, Op


def matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    _check_floating(call, a)
    return torch.matmul(call.wide(0, a), call.wide(1, b)).to(a.dtype)


def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    _check_floating(call, a)
    wide_a, wide_b = call.wide(0, a), call.wide(1, b)
    wide_a = wide_a.T if call.get("transA", 0) else wide_a
    wide_b = wide_b.T if call.get("transB", 0) else wide_b
    y: Tensor = call.get("alpha", 1.0) * (wide_a @ wide_b)
    if c is not None:
        y = y + call.get("beta", 1.0) * c.float()
    return y.to(a.dtype)


def _check_floating(call: Call, x: Tensor) -> None:
    if not x.is_floating_point():
        raise call.error(f"a product of {x.dtype} is not known to the interpreter")


def reduce_mean(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return _over(call, x, axes, lambda wide, dims, keep: wide.mean(dims, keepdim=keep))


def reduce_sum(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return _over(call, x, axes, lambda wide, dims, keep: wide.sum(dims, keepdim=keep))


def reduce_max(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return _over(call, x, axes, lambda wide, dims, keep: wide.amax(dims, keepdim=keep))


def reduce_min(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return _over(call, x, axes, lambda wide, dims, keep: wide.amin(dims, keepdim=keep))


def _over(call: Call, x: Tensor, axes: Tensor | None, reduce: Op) -> Tensor:
    given = [] if axes is None else axes.tolist()
    if not given and call.get("noop_with_empty_axes", 0):
        return x
    dims = given or list(range(x.dim()))
    wide = x.float() if x.is_floating_point() else x
    result = reduce(wide, dims, bool(call.get("keepdims", 1)))
    assert isinstance(result, Tensor)
    return result.to(x.dtype)


def top_k(call: Call, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Of equal values those of lower index come first, as ONNX has it."""
    axis, largest = call.get("axis", -1), bool(call.get("largest", 1))
    values, indices = x.sort(dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, int(k)), indices.narrow(axis, 0, int(k))


def softmax(call: Call, x: Tensor) -> Tensor:
    return torch.softmax(x.float(), dim=call.get("axis", -1)).to(x.dtype)


OPS: Mapping[tuple[str, str], Op] = {
    ("", "MatMul"): matmul,
    ("", "Gemm"): gemm,
    ("", "ReduceMean"): reduce_mean,
    ("", "ReduceSum"): reduce_sum,
    ("", "ReduceMax"): reduce_max,
    ("", "ReduceMin"): reduce_min,
    ("", "TopK"): top_k,
    ("", "Softmax"): softmax,
}
