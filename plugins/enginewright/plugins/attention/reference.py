"""The plain numpy meaning of CachedAttention, which every lowering and kernel is held to.

Tensors and shapes: see contract.py. Everything is computed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.attention.contract import AttentionAttributes

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Rotary:
    """cos and sin [positions, rotary_dim / 2]."""

    cos: NDArray[np.float32]
    sin: NDArray[np.float32]


def cached_attention(
    q: Array,
    k: Array,
    v: Array,
    k_cache: Array,
    v_cache: Array,
    block_table: NDArray[np.int32],
    past_lengths: NDArray[np.int32],
    new_lengths: NDArray[np.int32],
    attributes: AttentionAttributes,
    rotary: Rotary | None = None,
    sinks: Array | None = None,
) -> Array:
    """Write the new keys and values into the caches in place and return out [B, S, heads * D].

    Rows of the output beyond new_lengths are 0.
    """
    a = attributes
    out = np.zeros_like(q)
    for row, (past, new) in enumerate(zip(past_lengths, new_lengths, strict=True)):
        queries = _heads(q[row, :new], a.num_heads)
        keys = _heads(k[row, :new], a.kv_heads)
        if rotary is not None:
            positions = np.arange(past, past + new)
            queries = _rotate(queries, rotary, positions, a)
            keys = _rotate(keys, rotary, positions, a)
        _write(k_cache, keys, block_table[row], past)
        _write(v_cache, _heads(v[row, :new], a.kv_heads), block_table[row], past)
        all_keys = _read(k_cache, block_table[row], past + new)
        all_values = _read(v_cache, block_table[row], past + new)
        out[row, :new] = _attend(queries, all_keys, all_values, past, a, sinks)
    return out


def _heads(flat: Array, heads: int) -> Array:
    """[S, heads * D] -> [heads, S, D] in float64."""
    length = flat.shape[0]
    return flat.astype(np.float64).reshape(length, heads, -1).transpose(1, 0, 2)


def _rotate(
    x: Array, rotary: Rotary, positions: NDArray[np.int_], attributes: AttentionAttributes
) -> Array:
    half = attributes.rotary_dim // 2
    cos = rotary.cos[positions].astype(np.float64)
    sin = rotary.sin[positions].astype(np.float64)
    out = x.copy()
    rotated = x[..., : 2 * half]
    if attributes.interleaved:
        first, second = rotated[..., 0::2], rotated[..., 1::2]
        out[..., 0 : 2 * half : 2] = first * cos - second * sin
        out[..., 1 : 2 * half : 2] = second * cos + first * sin
    else:
        first, second = rotated[..., :half], rotated[..., half:]
        out[..., :half] = first * cos - second * sin
        out[..., half : 2 * half] = second * cos + first * sin
    return out


def _write(cache: Array, new: Array, blocks: NDArray[np.int32], past: int) -> None:
    size = cache.shape[2]
    for offset in range(new.shape[1]):
        position = past + offset
        cache[blocks[position // size], :, position % size] = new[:, offset]


def _read(cache: Array, blocks: NDArray[np.int32], length: int) -> Array:
    """The first ``length`` cached tokens of a row, [kv_heads, length, D]."""
    pages = cache[blocks].astype(np.float64)
    _, kv_heads, _, head_dim = pages.shape
    return pages.transpose(1, 0, 2, 3).reshape(kv_heads, -1, head_dim)[:, :length]


def _attend(
    q: Array, k: Array, v: Array, past: int, attributes: AttentionAttributes, sinks: Array | None
) -> Array:
    a = attributes
    group = a.num_heads // a.kv_heads
    k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
    scores = a.scale * (q @ k.transpose(0, 2, 1))
    if a.softcap:
        scores = a.softcap * np.tanh(scores / a.softcap)
    query_at = past + np.arange(q.shape[1])[:, None]
    key_at = np.arange(k.shape[1])[None, :]
    visible = key_at <= query_at
    if a.window:
        visible &= key_at > query_at - a.window
    scores = np.where(visible, scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks[:, None, None])
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - top)
    attended = (weights / total) @ v
    flat: Array = attended.transpose(1, 0, 2).reshape(q.shape[1], -1)
    return flat
