"""Kernel: the new tokens of each row over its cache, causally, in tiles.

A program takes ROWS of the queries [S * group] of one kv head, tokens first: heads that share keys
share the program that reads them. Tiles of keys that every query sees go without a mask.
"""
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from enginewright.plugins.attention.cuda.parts import (
    LOWEST,
    add_sinks,
    decode_codes,
    load_page,
    load_rotated,
    page_offsets,
    softmax_step,
)


@triton.jit
def prefill(
    q,
    k_cache,
    v_cache,
    block_table,
    past_lengths,
    new_lengths,
    cos,
    sin,
    sinks,
    k_scale,
    v_scale,
    out,
    tokens,
    blocks,
    window,
    score_scale,
    cap,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    CACHE: tl.constexpr,
    NATIVE_FP8: tl.constexpr,
    FLOAT32_DOTS: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    # The last tiles see the most keys: they start first.
    start = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    kv_head = tl.program_id(1)
    row = tl.program_id(2)
    past = tl.load(past_lengths + row)
    new = tl.minimum(tl.load(new_lengths + row), blocks * BLOCK_SIZE - past)
    if start >= new * GROUP:
        return

    index = start + tl.arange(0, ROWS)
    token = index // GROUP
    member = kv_head * GROUP + index % GROUP
    live = token < new
    position = past + token
    start_of_row = row.to(tl.int64) * tokens * (KV_HEADS * GROUP * HEAD_DIM)
    place = (token * (KV_HEADS * GROUP) + member) * HEAD_DIM
    queries = load_rotated(
        q + start_of_row,
        place,
        position,
        live,
        cos,
        sin,
        HEAD_DIM,
        PADDED_DIM,
        ROTARY_DIM,
        INTERLEAVED,
    ).to(q.dtype.element_ty)
    if FLOAT32_DOTS:
        queries = queries.to(tl.float32)
    if CACHE != "same":
        score_scale = score_scale * tl.load(k_scale + kv_head)

    # Tiles [first, end) of keys hold all that any query sees; every query sees [whole, part).
    earliest = past + start // GROUP
    latest = past + tl.minimum((start + ROWS - 1) // GROUP, new - 1)
    first = tl.maximum(0, earliest - window + 1) // TOKENS
    end = tl.cdiv(latest + 1, TOKENS)
    whole = tl.minimum(tl.cdiv(tl.maximum(0, latest - window + 1), TOKENS), end)
    part = tl.maximum((earliest + 1) // TOKENS, whole)

    table = block_table + row.to(tl.int64) * blocks
    top = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, PADDED_DIM], tl.float32)
    for tile in range(whole, part):
        at = tile * TOKENS + tl.arange(0, TOKENS)
        page = page_offsets(table, at, at >= 0, kv_head, KV_HEADS, HEAD_DIM, BLOCK_SIZE)
        keys = load_page(k_cache, page, at >= 0, HEAD_DIM, PADDED_DIM, False)
        values = load_page(v_cache, page, at >= 0, HEAD_DIM, PADDED_DIM, False)
        top, total, sums = softmax_step(
            queries,
            decode_codes(keys, queries.dtype, CACHE, NATIVE_FP8),
            decode_codes(values, queries.dtype, CACHE, NATIVE_FP8),
            top,
            total,
            sums,
            at >= 0,
            score_scale,
            cap,
            HAS_SOFTCAP,
            False,
        )
    for edge in range(whole - first + end - part):
        tile = tl.where(edge < whole - first, first + edge, part + edge - (whole - first))
        at = tile * TOKENS + tl.arange(0, TOKENS)
        seen = at <= latest
        page = page_offsets(table, at, seen, kv_head, KV_HEADS, HEAD_DIM, BLOCK_SIZE)
        keys = load_page(k_cache, page, seen, HEAD_DIM, PADDED_DIM, True)
        values = load_page(v_cache, page, seen, HEAD_DIM, PADDED_DIM, True)
        behind = position[:, None] - at[None, :]
        top, total, sums = softmax_step(
            queries,
            decode_codes(keys, queries.dtype, CACHE, NATIVE_FP8),
            decode_codes(values, queries.dtype, CACHE, NATIVE_FP8),
            top,
            total,
            sums,
            (behind >= 0) & (behind < window),
            score_scale,
            cap,
            HAS_SOFTCAP,
            True,
        )

    if HAS_SINKS:
        top, total, sums = add_sinks(top, total, sums, sinks, member, live)
    if CACHE != "same":
        sums *= tl.load(v_scale + kv_head)
    column = tl.arange(0, PADDED_DIM)
    held = live[:, None] & (column < HEAD_DIM)[None, :]
    target = out + start_of_row + place[:, None] + column[None, :]
    tl.store(target, (sums / total[:, None]).to(out.dtype.element_ty), mask=held)
