"""Ops that move, cut and join, and those that compute shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from enginewright.builder.interpreter.call import Call, Op
from enginewright.builder.interpreter.tensors import to_torch


def constant(call: Call) -> Tensor:
    if "value" in call.attributes:
        return to_torch(call.get("value"))
    for name, kind in (("float", torch.float32), ("int", torch.int64)):
        for key in (f"value_{name}", f"value_{name}s"):
            if key in call.attributes:
                return torch.tensor(call.get(key), dtype=kind)
    raise call.error(f"a constant of {sorted(call.attributes)} is not known to the interpreter")


def constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    value = call.get("value")
    fill = torch.zeros(1) if value is None else to_torch(value)
    return fill.reshape(()).expand(shape.tolist()).clone()


def identity(call: Call, x: Tensor) -> Tensor:
    return x


def shape_of(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[slice(call.get("start", 0), call.get("end"))], dtype=torch.int64)


def size_of(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


def reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    sizes = [int(size) for size in shape]
    if not call.get("allowzero", 0):
        sizes = [x.shape[at] if size == 0 else size for at, size in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1) % (x.dim() + 1)
    return x.reshape(int(torch.Size(x.shape[:axis]).numel()), -1)


def transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.get("perm", list(reversed(range(x.dim())))))


def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def unsqueeze(call: Call, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.dim() + axes.numel()
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(x.shape, shape.tolist()))


def tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(repeats.tolist())


def concat(call: Call, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=call.get("axis"))


def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> Sequence[Tensor]:
    axis = call.get("axis", 0)
    if sizes is not None:
        return torch.split(x, sizes.tolist(), dim=axis)
    return torch.split(x, -(-x.shape[axis] // len(call.node.outputs)), dim=axis)


def slice_(
    call: Call,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    wanted = range(starts.numel()) if axes is None else axes.tolist()
    strides = [1] * starts.numel() if steps is None else steps.tolist()
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), wanted, strides, strict=True):
        if step < 1:
            raise call.error(f"a step of {step} is not known to the interpreter")
        cut = slice(start, end, step)
        x = x[(slice(None),) * (axis % x.dim()) + (cut,)]
    return x


def range_(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0) % x.dim()
    size = x.shape[axis]
    if indices.numel() and not (-size <= int(indices.min()) and int(indices.max()) < size):
        raise call.error(
            f"indices {int(indices.min())} to {int(indices.max())} of an axis of {size}"
        )
    picked = x.index_select(axis, indices.reshape(-1) % size)
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0)
    return torch.gather(x, axis, indices.long() % x.shape[axis])


def trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return x.triu(diagonal) if call.get("upper", 1) else x.tril(diagonal)


def cum_sum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    if call.get("exclusive", 0) or call.get("reverse", 0):
        raise call.error("exclusive and reverse sums are not known to the interpreter")
    return x.cumsum(int(axis)).to(x.dtype)


OPS: Mapping[tuple[str, str], Op] = {
    ("", "Constant"): constant,
    ("", "ConstantOfShape"): constant_of_shape,
    ("", "Identity"): identity,
    ("", "Shape"): shape_of,
    ("", "Size"): size_of,
    ("", "Reshape"): reshape,
    ("", "Flatten"): flatten,
    ("", "Transpose"): transpose,
    ("", "Squeeze"): squeeze,
    ("", "Unsqueeze"): unsqueeze,
    ("", "Expand"): expand,
    ("", "Tile"): tile,
    ("", "Concat"): concat,
    ("", "Split"): split,
    ("", "Slice"): slice_,
    ("", "Range"): range_,
    ("", "Gather"): gather,
    ("", "GatherElements"): gather_elements,
    ("", "Trilu"): trilu,
    ("", "CumSum"): cum_sum,
}
