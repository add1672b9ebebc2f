"""Kernel: keys, turned by rotary, and values of new tokens into the paged pool.

A program takes ROWS of the vectors [S * kv_heads, D] of one row of the batch. What lies beyond
new_lengths is not written, nor what the block table has no room for.
"""
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from enginewright.plugins.attention.cuda.parts import (
    encode_fp8,
    encode_int8,
    load_rotated,
    page_offsets,
)


@triton.jit
def cache_write(
    k,
    v,
    k_cache,
    v_cache,
    block_table,
    past_lengths,
    new_lengths,
    cos,
    sin,
    k_scale,
    v_scale,
    tokens,
    blocks,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    CACHE: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(2)
    new = tl.load(new_lengths + row)
    start = tl.program_id(0) * ROWS
    if start >= new * KV_HEADS:
        return
    vector = start + tl.arange(0, ROWS)
    token = vector // KV_HEADS
    head = vector % KV_HEADS
    position = tl.load(past_lengths + row) + token
    live = (token < new) & (position < blocks * BLOCK_SIZE)

    start_of_row = row.to(tl.int64) * tokens * (KV_HEADS * HEAD_DIM)
    source = vector * HEAD_DIM
    k += start_of_row
    v += start_of_row
    keys = load_rotated(
        k, source, position, live, cos, sin, HEAD_DIM, PADDED_DIM, ROTARY_DIM, INTERLEAVED
    )
    values = load_rotated(v, source, position, live, cos, sin, HEAD_DIM, PADDED_DIM, 0, False)
    table = block_table + row.to(tl.int64) * blocks
    target = page_offsets(table, position, live, head, KV_HEADS, HEAD_DIM, BLOCK_SIZE)
    store(k_cache, keys, target, live, k_scale, head, HEAD_DIM, PADDED_DIM, CACHE)
    store(v_cache, values, target, live, v_scale, head, HEAD_DIM, PADDED_DIM, CACHE)


@triton.jit
def store(
    cache,
    x,
    target,
    live,
    scale,
    head,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    CACHE: tl.constexpr,
):
    column = tl.arange(0, PADDED_DIM)
    if CACHE != "same":
        x = x / tl.load(scale + head, mask=live, other=1.0)[:, None]
    if CACHE == "int8":
        stored = encode_int8(x)
    elif CACHE == "fp8":
        stored = encode_fp8(x)
    else:
        stored = x.to(cache.dtype.element_ty)
    mask = live[:, None] & (column < HEAD_DIM)[None, :]
    tl.store(cache + target[:, None] + column[None, :], stored, mask=mask)
