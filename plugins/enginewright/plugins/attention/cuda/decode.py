"""Kernels: one new token a row over its cached tokens, in splits, and the splits put together.

A program takes one split of one row for the query heads of one kv head, so that each key and value
is read once. With one split it writes ``out``; else partial results and their log-sum-exp.
"""
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from enginewright.plugins.attention.cuda.parts import (
    LOG2E,
    LOWEST,
    add_sinks,
    decode_codes,
    load_page,
    load_rotated,
    page_offsets,
    softmax_step,
    split_size,
    visible_range,
)


@triton.jit
def decode(
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
    workspace,
    blocks,
    splits,
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
    MIN_TOKENS: tl.constexpr,
):
    TILES: tl.constexpr = (GROUP + ROWS - 1) // ROWS
    split = tl.program_id(0)
    kv_head = tl.program_id(1) // TILES
    row = tl.program_id(2)
    low, end = visible_range(past_lengths, new_lengths, row, blocks, window, BLOCK_SIZE)
    size = split_size(end - low, splits, MIN_TOKENS)
    first = low + split * size
    last = tl.minimum(first + size, end)
    if (first >= end) | (tl.load(new_lengths + row) == 0):
        return

    member = (tl.program_id(1) % TILES) * ROWS + tl.arange(0, ROWS)
    live = member < GROUP
    head = row * (KV_HEADS * GROUP) + kv_head * GROUP + member
    position = tl.zeros_like(member) + (end - 1)
    queries = load_rotated(
        q, head * HEAD_DIM, position, live, cos, sin, HEAD_DIM, PADDED_DIM, ROTARY_DIM, INTERLEAVED
    ).to(q.dtype.element_ty)
    if FLOAT32_DOTS:
        queries = queries.to(tl.float32)
    if CACHE != "same":
        score_scale = score_scale * tl.load(k_scale + kv_head)

    table = block_table + row.to(tl.int64) * blocks
    top = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, PADDED_DIM], tl.float32)
    for start in range(first, last, TOKENS):
        at = start + tl.arange(0, TOKENS)
        seen = at < last
        page = page_offsets(table, at, seen, kv_head, KV_HEADS, HEAD_DIM, BLOCK_SIZE)
        keys = load_page(k_cache, page, seen, HEAD_DIM, PADDED_DIM, True)
        values = load_page(v_cache, page, seen, HEAD_DIM, PADDED_DIM, True)
        top, total, sums = softmax_step(
            queries,
            decode_codes(keys, queries.dtype, CACHE, NATIVE_FP8),
            decode_codes(values, queries.dtype, CACHE, NATIVE_FP8),
            top,
            total,
            sums,
            seen[None, :],
            score_scale,
            cap,
            HAS_SOFTCAP,
            True,
        )

    column = tl.arange(0, PADDED_DIM)
    held = live[:, None] & (column < HEAD_DIM)[None, :]
    if CACHE != "same":
        sums *= tl.load(v_scale + kv_head)
    if splits == 1:
        if HAS_SINKS:
            top, total, sums = add_sinks(top, total, sums, sinks, kv_head * GROUP + member, live)
        target = out + (head * HEAD_DIM)[:, None] + column[None, :]
        tl.store(target, (sums / total[:, None]).to(out.dtype.element_ty), mask=held)
    else:
        partial = head.to(tl.int64) * splits + split
        parts = workspace + (partial * HEAD_DIM)[:, None] + column[None, :]
        tl.store(parts, sums / total[:, None], mask=held)
        logs = workspace + tl.num_programs(2).to(tl.int64) * (KV_HEADS * GROUP * HEAD_DIM) * splits
        tl.store(logs + partial, top + tl.log2(total), mask=live)


@triton.jit
def reduce(
    past_lengths,
    new_lengths,
    sinks,
    out,
    workspace,
    blocks,
    splits,
    window,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    SPLITS: tl.constexpr,
    MIN_TOKENS: tl.constexpr,
):
    row = tl.program_id(2)
    if tl.load(new_lengths + row) == 0:
        return
    low, end = visible_range(past_lengths, new_lengths, row, blocks, window, BLOCK_SIZE)
    filled = tl.cdiv(end - low, split_size(end - low, splits, MIN_TOKENS))
    head = row.to(tl.int64) * HEADS + tl.program_id(0)
    logs = workspace + tl.num_programs(2).to(tl.int64) * (HEADS * HEAD_DIM) * splits

    column = tl.arange(0, PADDED_DIM)
    within = column < HEAD_DIM
    top = tl.full([1], LOWEST, tl.float32)
    total = tl.zeros([1], tl.float32)
    if HAS_SINKS:
        top = top * 0 + tl.load(sinks + tl.program_id(0)) * LOG2E
        total += 1.0
    sums = tl.zeros([PADDED_DIM], tl.float32)
    for start in range(0, filled, SPLITS):
        split = start + tl.arange(0, SPLITS)
        live = split < filled
        partial = head * splits + split
        log = tl.load(logs + partial, mask=live, other=float("-inf"))
        source = workspace + (partial * HEAD_DIM)[:, None] + column[None, :]
        part = tl.load(source, mask=live[:, None] & within[None, :], other=0.0)
        higher = tl.maximum(top, tl.max(log, 0))
        weights = tl.exp2(log - higher)
        fade = tl.exp2(top - higher)
        total = total * fade + tl.sum(weights, 0)
        sums = sums * fade + tl.sum(part * weights[:, None], 0)
        top = higher
    tl.store(out + head * HEAD_DIM + column, (sums / total).to(out.dtype.element_ty), mask=within)
