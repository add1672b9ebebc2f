"""Attention over a cache: TensorRT's own layers, and this project's op over pages.

B rows, S new positions, H heads in groups over G key heads, T keys, D the size of a head. Every op
here turns what it is given into this, in float32:

| tensor  | shape        | meaning                                   |
|---------|--------------|-------------------------------------------|
| q       | [B, H, S, D] | queries, rotated                          |
| k, v    | [B, G, T, D] | keys and values, past and new             |
| visible | [B, S, T]    | bool: which keys a query sees             |
| sinks   | [H]          | optional: one more logit that adds no value |

The probabilities are not rounded before they meet the values; kernels on a device may do so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from enginewright.builder.interpreter.call import Call, Op
from enginewright.builder.interpreter.ops.rotary import rotate
from enginewright.builder.interpreter.ops.rounding import round_to

CACHED_ATTENTION = "EnginewrightCachedAttention"
_QUANTIZED = {
    torch.int8: ir.DataType.INT8,
    torch.float8_e4m3fn: ir.DataType.FLOAT8E4M3FN,
}


@dataclass(frozen=True)
class Scores:
    """How logits are made of products."""

    scale: float = 1.0
    softcap: float = 0.0
    sinks: Tensor | None = None


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scores: Scores) -> Tensor:
    """[B, H, S, D] float32; 0 for a query that sees nothing."""
    batch, heads, length, size = q.shape
    groups = k.shape[1]
    grouped = q.reshape(batch, groups, heads // groups * length, size)
    logits = (grouped @ k.transpose(-1, -2)).reshape(batch, heads, length, -1)
    logits = logits * scores.scale
    if scores.softcap:
        logits = scores.softcap * torch.tanh(logits / scores.softcap)
    logits = logits.masked_fill(~visible[:, None], -torch.inf)
    top = logits.amax(-1, keepdim=True)
    if scores.sinks is not None:
        top = torch.maximum(top, scores.sinks[:, None, None])
    weights = torch.exp(logits - top.clamp(min=torch.finfo(torch.float32).min))
    total = weights.sum(-1, keepdim=True)
    if scores.sinks is not None:
        total = total + torch.exp(scores.sinks[:, None, None] - top)
    weights = weights / total.clamp(min=torch.finfo(torch.float32).tiny)
    grouped = weights.reshape(batch, groups, heads // groups * length, -1)
    return (grouped @ v).reshape(batch, heads, length, size)


def seen(query_at: Tensor, keys: int, window: int = 0) -> Tensor:
    """[B, S, T]: the keys 0..T up to each query's own position [B, S], the last ``window``."""
    key_at = torch.arange(keys)
    visible = key_at <= query_at[..., None]
    return visible & (key_at > query_at[..., None] - window) if window else visible


def tensor_scatter(
    call: Call, cache: Tensor, update: Tensor, write_indices: Tensor | None = None
) -> Tensor:
    """``update`` written into the cache at each row's index."""
    if call.get("mode", "linear") != "linear":
        raise call.error("a circular cache is not known to the interpreter, nor to TensorRT")
    axis = call.get("axis", -2) % cache.dim()
    length, size = update.shape[axis], cache.shape[axis]
    rows = torch.zeros(len(cache)) if write_indices is None else write_indices
    starts = [int(start) for start in rows]
    if starts and not 0 <= min(starts) <= max(starts) <= size - length:
        raise call.error(f"{length} tokens at {starts} do not fit a cache of {size}")
    out = call.writable(0, cache)
    for row, start in enumerate(starts):
        out[row].narrow(axis - 1, start, length).copy_(update[row])
    return out


def trt_attention(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    query_lengths: Tensor | None = None,
    kv_lengths: Tensor | None = None,
) -> Tensor:
    """TensorRT's attention layer; q comes scaled. Keys beyond a row's kv_lengths are not there."""
    forms = {call.get("query_form"), call.get("kv_form")}
    kind = call.get("causal_kind")
    if mask is not None or query_lengths is not None or forms != {"padded_bhnd"}:
        raise call.error("masks, query lengths and packed forms are not known to the interpreter")
    batch, length = q.shape[0], q.shape[2]
    totals = torch.full((batch,), k.shape[2]) if kv_lengths is None else kv_lengths.long()
    longest = int(totals.max())
    if longest > k.shape[2]:
        raise call.error(f"kv_lengths {totals.tolist()} in a cache of {k.shape[2]}")
    first = {"lower_right": totals - length, "upper_left": torch.zeros_like(totals)}.get(kind)
    if first is None:
        raise call.error(f"causal_kind {kind!r} is not known to the interpreter")
    visible = seen(first[:, None] + torch.arange(length), longest)
    visible &= torch.arange(longest) < totals[:, None, None]
    keys, values = (x[:, :, :longest].float() for x in (k, v))
    return attend(q.float(), keys, values, visible, Scores()).to(q.dtype)


def cached_attention(call: Call, *operands: Tensor) -> Sequence[Tensor]:
    """``enginewright::CachedAttention``; its contract.py and reference.py say what it means.

    Rotary, the write into the pages and attention over them; rows of the output beyond
    new_lengths are 0.
    """
    q, k, v, k_cache, v_cache, table, past, new, *rest = operands
    extras = dict(zip(_extras(call), rest, strict=True))
    k_cache, v_cache = call.writable(3, k_cache), call.writable(4, v_cache)
    query_at = past.long()[:, None] + torch.arange(q.shape[1])
    real = torch.arange(q.shape[1]) < new[:, None]
    queries, keys = _heads(call, q, "num_heads"), _heads(call, k, "kv_heads")
    if "cos" in extras:
        at = torch.where(real, query_at, 0)
        tables = extras["cos"][at], extras["sin"][at]
        interleaved = bool(call.get("interleaved", 0))
        queries, keys = (rotate(x, *tables, interleaved=interleaved) for x in (queries, keys))
    pages = _Pages(table.long(), query_at, real)
    pages.write(k_cache, keys, extras.get("k_scale"))
    pages.write(v_cache, _heads(call, v, "kv_heads"), extras.get("v_scale"))
    longest = int((past + new).max())
    all_keys = pages.read(k_cache, longest, extras.get("k_scale"))
    all_values = pages.read(v_cache, longest, extras.get("v_scale"))
    visible = seen(query_at, longest, call.get("window", 0)) & real[..., None]
    scores = Scores(call.get("scale"), call.get("softcap", 0.0), extras.get("sinks"))
    out = attend(queries, all_keys, all_values, visible, scores)
    flat = out.transpose(1, 2).reshape(q.shape)
    return (flat * real[..., None]).to(q.dtype), k_cache, v_cache


def _extras(call: Call) -> list[str]:
    """The names of the inputs after new_lengths, in their order."""
    return [
        *(["cos", "sin"] if call.get("rotary_dim", 0) else []),
        *(["sinks"] if call.get("has_sinks", 0) else []),
        *(["k_scale", "v_scale"] if call.get("quantized", 0) else []),
    ]


def _heads(call: Call, flat: Tensor, count: str) -> Tensor:
    """[B, S, heads * D] -> [B, heads, S, D] in float32."""
    batch, length, _ = flat.shape
    return flat.float().reshape(batch, length, call.get(count), -1).transpose(1, 2)


@dataclass(frozen=True)
class _Pages:
    """Where the rows of a step are: block table [B, n], positions [B, S], which are real [B, S]."""

    table: Tensor
    positions: Tensor
    real: Tensor

    def write(self, pool: Tensor, new: Tensor, scale: Tensor | None) -> None:
        """New keys or values [B, G, S, D] into the pool [blocks, G, size, D]."""
        at = torch.where(self.real, self.positions, 0)
        blocks = torch.gather(self.table, 1, at // pool.shape[2])[self.real]
        if scale is not None:
            new = new / scale[:, None, None]
        stored = round_to(new, _QUANTIZED[pool.dtype]) if scale is not None else new.to(pool.dtype)
        tokens = stored.transpose(1, 2)[self.real]
        pool[blocks, :, (at % pool.shape[2])[self.real]] = tokens

    def read(self, pool: Tensor, length: int, scale: Tensor | None) -> Tensor:
        """The first ``length`` tokens of every row, [B, G, length, D] in float32."""
        pages = self.table[:, : -(-length // pool.shape[2])].clamp(min=0)
        found = pool[pages].float().transpose(1, 2)
        whole = found.reshape(found.shape[0], found.shape[1], -1, found.shape[-1])[:, :, :length]
        return whole if scale is None else whole * scale[:, None, None]


OPS: Mapping[tuple[str, str], Op] = {
    ("", "TensorScatter"): tensor_scatter,
    ("trt", "TRT_Attention"): trt_attention,
    ("enginewright", CACHED_ATTENTION): cached_attention,
}
