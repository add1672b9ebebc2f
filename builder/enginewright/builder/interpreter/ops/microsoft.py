"""Ops of ONNX Runtime's own domain, which the target ``cuda`` lowers to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from enginewright.builder.interpreter.call import Call, Op
from enginewright.builder.interpreter.ops.attention import Scores, attend, seen
from enginewright.builder.interpreter.ops.rotary import rotate

MICROSOFT = "com.microsoft"
_INPUTS = 12
"""Of GroupQueryAttention, those that are known here."""


def group_query_attention(call: Call, *operands: Tensor | None) -> Sequence[Tensor]:
    """Attention over caches [B, G, C, D] that are written in place of the past.

    Inputs: q, k, v (or q, k, v in one), past keys and values, the index of each row's last token,
    the longest total, cos, sin, positions, a bias, sinks.
    """
    padded: list[Any] = [*operands, *[None] * (_INPUTS - len(operands))]
    q, k, v, k_cache, v_cache, last, total, cos, sin, positions, bias, sinks = padded[:_INPUTS]
    if positions is not None or bias is not None:
        raise call.error("positions and biases are not known to the interpreter")
    queries, keys, values = _projections(call, q, k, v)
    length = queries.shape[2]
    # A step is a prefill where the longest total is its own length; it is padded beyond shorter
    # rows, which later steps are not.
    past = torch.zeros_like(last) if int(total) == length else last - length + 1
    query_at = past.long().reshape(-1, 1) + torch.arange(length)
    if call.get("do_rotary", 0):
        interleaved = bool(call.get("rotary_interleaved", 0))
        tables = cos[query_at], sin[query_at]
        queries, keys = (rotate(x, *tables, interleaved=interleaved) for x in (queries, keys))
    caches = call.writable(3, k_cache), call.writable(4, v_cache)
    for cache, fresh in zip(caches, (keys, values), strict=True):
        rows = torch.arange(len(cache))[:, None]
        cache[rows, :, query_at] = fresh.transpose(1, 2).to(cache.dtype)
    longest = int(query_at.max()) + 1
    all_keys, all_values = (cache[:, :, :longest].float() for cache in caches)
    visible = seen(query_at, longest, max(call.get("local_window_size", -1), 0))
    scores = Scores(
        call.get("scale", 0.0) or queries.shape[-1] ** -0.5,
        call.get("softcap", 0.0),
        None if sinks is None else sinks.float(),
    )
    out = attend(queries, all_keys, all_values, visible, scores)
    flat = out.transpose(1, 2).reshape(len(out), length, -1)
    return flat.to(q.dtype), *caches


def _projections(
    call: Call, q: Tensor, k: Tensor | None, v: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """[B, heads, S, D] each, in float32."""
    heads, groups = call.get("num_heads"), call.get("kv_num_heads")
    if k is None or v is None:
        size = q.shape[-1] // (heads + 2 * groups)
        q, k, v = torch.split(q, [heads * size, groups * size, groups * size], dim=-1)
    parts = ((q, heads), (k, groups), (v, groups))
    queries, keys, values = (
        x.float().reshape(*x.shape[:2], count, -1).transpose(1, 2) for x, count in parts
    )
    return queries, keys, values


def matmul_n_bits(
    call: Call,
    a: Tensor,
    codes: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    group_index: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """a [..., K] times the transpose of a matrix [N, K] in blocks along K."""
    if group_index is not None:
        raise call.error("a group index is not known to the interpreter")
    n, k, size = call.get("N"), call.get("K"), call.get("block_size")
    scales = scales.reshape(n, -(-k // size))
    zeros = None if zero_points is None else zero_points.reshape(n, -1)
    weight = _in_blocks(call, codes.reshape(n, -1), scales, zeros)[:, :k]
    y = a.float() @ weight.T
    return (y if bias is None else y + bias.float()).to(a.dtype)


def gather_block_quantized(
    call: Call, table: Tensor, indices: Tensor, scales: Tensor, zeros: Tensor | None = None
) -> Tensor:
    """Rows of a table [N, K] in blocks along K; only those are dequantized."""
    wanted = indices.reshape(-1).long()
    picked = None if zeros is None else zeros[wanted]
    rows = _in_blocks(call, table[wanted], scales[wanted], picked)
    return rows.to(scales.dtype).reshape(*indices.shape, -1)


def _in_blocks(call: Call, codes: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """(code - zero) * scale [N, K] in float32; the zero is the middle code where none is given."""
    bits = call.get("bits", 4)
    rows, blocks = scales.shape
    unpacked = _unpack(codes, bits).reshape(rows, blocks, -1).float()
    if zeros is None:
        unpacked = unpacked - (1 << (bits - 1))
    else:
        unpacked = unpacked - _unpack(zeros, bits)[:, :blocks, None].float()
    return (unpacked * scales.float()[..., None]).reshape(rows, -1)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """Bytes [N, M] -> codes, lowest bits first."""
    if bits == 8:
        return packed
    parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, -1).flatten(1)


OPS: Mapping[tuple[str, str], Op] = {
    (MICROSOFT, "GroupQueryAttention"): group_query_attention,
    (MICROSOFT, "MatMulNBits"): matmul_n_bits,
    (MICROSOFT, "GatherBlockQuantized"): gather_block_quantized,
}
