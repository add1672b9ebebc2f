"""The plain numpy meaning of CachedAttention, which every lowering and kernel is held to.

Tensors and shapes: see contract.py. Everything is computed in float64 and rounded once. A quantized
cache holds codes, int8 or, as uint8, the bits of fp8 e4m3; its values are code * scale. In one of
float16 what is beyond the largest is stored as that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.attention.contract import AttentionAttributes
from enginewright.plugins.rounding import ties_to_even

Array = NDArray[np.floating]

FP8_MAX = 448.0
FP16_MAX = 65504.0
CHUNK = 256
"""Keys that the CPU's kernels take at a time."""


@dataclass(frozen=True)
class Rotary:
    """cos and sin [positions, rotary_dim / 2]."""

    cos: NDArray[np.float32]
    sin: NDArray[np.float32]


@dataclass(frozen=True)
class Scales:
    """Of a quantized cache, [kv_heads] each."""

    k: NDArray[np.float32]
    v: NDArray[np.float32]


def cached_attention(
    q: Array,
    k: Array,
    v: Array,
    k_cache: NDArray[Any],
    v_cache: NDArray[Any],
    block_table: NDArray[np.int32],
    past_lengths: NDArray[np.int32],
    new_lengths: NDArray[np.int32],
    attributes: AttentionAttributes,
    rotary: Rotary | None = None,
    sinks: Array | None = None,
    scales: Scales | None = None,
    *,
    tiles: bool = False,
) -> Array:
    """Write the new keys and values into the caches in place and return out [B, S, heads * D].

    ``scales``: for a cache of codes. ``tiles``: what tiles of bfloat16 give of a cache of float16.
    Rows of the output beyond new_lengths are 0.
    """
    a = attributes
    out = np.zeros_like(q)
    for row, (past, new) in enumerate(zip(past_lengths, new_lengths, strict=True)):
        if new == 0:
            continue
        queries = _heads(q[row, :new], a.num_heads)
        keys = _heads(k[row, :new], a.kv_heads)
        if rotary is not None:
            positions = np.arange(past, past + new)
            queries = _rotate(queries, rotary, positions, a)
            keys = _rotate(keys, rotary, positions, a)
        values = _heads(v[row, :new], a.kv_heads)
        k_scale, v_scale = (scales.k, scales.v) if scales is not None else (None, None)
        _write(k_cache, keys, block_table[row], past, k_scale)
        _write(v_cache, values, block_table[row], past, v_scale)
        all_keys = _read(k_cache, block_table[row], past + new, k_scale)
        all_values = _read(v_cache, block_table[row], past + new, v_scale)
        if tiles:
            queries = ties_to_even((queries * a.scale).astype(np.float32)) / a.scale
            all_keys, all_values = _with_fewer_bits(all_keys), _with_fewer_bits(all_values)
        out[row, :new] = _attend(queries, all_keys, all_values, past, a, sinks, tiles)
    return out


def _heads(flat: Array, heads: int) -> Array:
    """[S, heads * D] -> [heads, S, D] in float64."""
    length, width = flat.shape
    return flat.astype(np.float64).reshape(length, heads, width // heads).transpose(1, 0, 2)


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


def encode(values: Array, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Round to the nearest code, ties to even; what is beyond the last code becomes the last."""
    if dtype == np.int8:
        return np.rint(values).clip(-128, 127).astype(np.int8)
    assert dtype == np.uint8, "codes are int8, or fp8 e4m3 as uint8"
    size = np.abs(values).clip(max=FP8_MAX)
    # Steps between neighbours: 2^-9 below 2^-6, else an eighth of the power of two below.
    exponent = np.where(size < 2.0**-6, -6, np.frexp(size)[1] - 1)
    steps = np.rint(np.ldexp(size, 3 - exponent)).astype(np.int64)
    code: NDArray[np.int64] = ((exponent + 6) << 3) + steps
    code += np.where(np.signbit(values), 0x80, 0)
    return code.astype(np.uint8)


def decode(codes: NDArray[Any]) -> Array:
    """The values of codes, float64, before their scale; other dtypes as they are."""
    if codes.dtype != np.uint8:
        return codes.astype(np.float64)
    exponent = (codes >> 3 & 15).astype(np.int64)
    steps = (codes & 7) + np.where(exponent > 0, 8, 0)
    size = np.ldexp(steps.astype(np.float64), np.maximum(exponent, 1) - 10)
    signed: Array = np.where(codes & 0x80, -size, size)
    return signed


def _write(
    cache: NDArray[Any],
    new: Array,
    blocks: NDArray[np.int32],
    past: int,
    scale: NDArray[np.float32] | None,
) -> None:
    if scale is not None:
        new = encode(new / scale.astype(np.float64)[:, None, None], cache.dtype)
    elif cache.dtype == np.float16:
        new = new.clip(-FP16_MAX, FP16_MAX)
    size = cache.shape[2]
    for offset in range(new.shape[1]):
        position = past + offset
        cache[blocks[position // size], :, position % size] = new[:, offset]


def _read(
    cache: NDArray[Any],
    blocks: NDArray[np.int32],
    length: int,
    scale: NDArray[np.float32] | None,
) -> Array:
    """The first ``length`` cached tokens of a row, [kv_heads, length, D]."""
    pages = decode(cache[blocks])
    if scale is not None:
        pages = pages * scale.astype(np.float64)[:, None, None]
    _, kv_heads, _, head_dim = pages.shape
    return pages.transpose(1, 0, 2, 3).reshape(kv_heads, -1, head_dim)[:, :length]


def _attend(
    q: Array,
    k: Array,
    v: Array,
    past: int,
    attributes: AttentionAttributes,
    sinks: Array | None,
    tiles: bool,
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
    if tiles:
        weights = _rounded_by_chunk(scores, top)
    attended = (weights / total) @ v
    flat: Array = attended.transpose(1, 0, 2).reshape(q.shape[1], -1)
    return flat


def _with_fewer_bits(stored: Array) -> Array:
    """Values of float16 with three bits less, ties away from 0; 0 below 2^-14."""
    bits = stored.astype(np.float16).view(np.uint16) + np.uint16(4) & np.uint16(0xFFF8)
    bits[bits & 0x7C00 == 0] = 0
    values = bits.view(np.float16).astype(np.float64)
    beyond = bits & 0x7C00 == 0x7C00  # which is a number of bfloat16
    size = 2.0**16 * (1 + (bits[beyond] & 0x3FF) / 1024)
    values[beyond] = np.where(bits[beyond] & 0x8000, -size, size)
    return values


def _rounded_by_chunk(scores: Array, top: Array) -> Array:
    """exp(scores - top), rounded to bfloat16 beside the largest of its chunk of keys."""
    chunks = []
    for start in range(0, scores.shape[-1], CHUNK):
        chunk = scores[..., start : start + CHUNK]
        largest = chunk.max(axis=-1, keepdims=True)
        largest = np.where(np.isfinite(largest), largest, top)
        rounded = ties_to_even(np.exp(chunk - largest).astype(np.float32))
        chunks.append(rounded * np.exp(largest - top))
    return np.concatenate(chunks, axis=-1)
