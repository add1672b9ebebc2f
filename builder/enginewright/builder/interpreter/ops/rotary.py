"""Rotary embedding, in float32, rounded once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from enginewright.builder.interpreter.call import Call, Op


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """x [B, heads, S, D] turned by cos, sin [B, S, R / 2] in its first R dimensions."""
    half = cos.shape[-1]
    cos, sin = cos.float()[:, None], sin.float()[:, None]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., :half], turned[..., half:]
    pair = first * cos - second * sin, second * cos + first * sin
    both = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat([both, rest], -1)


def rotary_embedding(
    call: Call, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None
) -> Tensor:
    """x [B, heads, S, D], or [B, S, heads * D] with num_heads."""
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    wide = x.float()
    if x.dim() == 3:
        batch, length, _ = x.shape
        wide = wide.reshape(batch, length, call.get("num_heads"), -1).transpose(1, 2)
    dims = call.get("rotary_embedding_dim", 0) or wide.shape[-1]
    if 2 * cos.shape[-1] != dims:
        raise call.error(f"cos and sin of {cos.shape[-1]} for {dims} rotated dimensions")
    y = rotate(wide, cos, sin, interleaved=bool(call.get("interleaved", 0)))
    if x.dim() == 3:
        y = y.transpose(1, 2).reshape(x.shape)
    return y.to(x.dtype)


OPS: Mapping[tuple[str, str], Op] = {("", "RotaryEmbedding"): rotary_embedding}
