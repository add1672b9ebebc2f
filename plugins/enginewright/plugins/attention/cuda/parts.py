"""What the attention kernels share: rows with rotary, pages of the cache, softmax step by step.

Written in Triton; under TRITON_INTERPRET=1 the same source runs on the CPU.
"""
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e30)


@triton.jit
def load_rotated(
    pointer,
    offsets,
    positions,
    live,
    cos,
    sin,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """[R, PADDED_DIM] float32: the heads that start at ``offsets``, turned by their positions."""
    column = tl.arange(0, PADDED_DIM)
    rows = pointer + offsets[:, None]
    x = tl.zeros([offsets.shape[0], PADDED_DIM], tl.float32)
    if ROTARY_DIM > 0:
        HALF: tl.constexpr = ROTARY_DIM // 2
        if INTERLEAVED:
            first = column % 2 == 0
            partner = column ^ 1
            frequency = column // 2
        else:
            first = column < HALF
            partner = tl.where(first, column + HALF, column - HALF)
            frequency = tl.where(first, column, column - HALF)
        turned = live[:, None] & (column < ROTARY_DIM)[None, :]
        angles = positions[:, None] * HALF + frequency[None, :]
        y = tl.load(rows + partner[None, :], mask=turned, other=0.0).to(tl.float32)
        s = tl.load(sin + angles, mask=turned, other=0.0)
        x = tl.where(first[None, :], -y, y) * s
        # Half of the registers: what is added is loaded only when this is done.
        tl.debug_barrier()
    held = live[:, None] & (column < HEAD_DIM)[None, :]
    straight = tl.load(rows + column[None, :], mask=held, other=0.0).to(tl.float32)
    if ROTARY_DIM > 0:
        straight *= tl.load(cos + angles, mask=turned, other=1.0)
    return straight + x


@triton.jit
def page_offsets(
    table,
    positions,
    live,
    head,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """int64: where in the pool the vector of ``head`` starts, for each position of a row."""
    block = tl.load(table + positions // BLOCK_SIZE, mask=live, other=0).to(tl.int64)
    slot = (block * KV_HEADS + head) * BLOCK_SIZE + positions % BLOCK_SIZE
    return slot * HEAD_DIM


@triton.jit
def load_page(
    cache, offsets, live, HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, MASKED: tl.constexpr
):
    """[tokens, PADDED_DIM] as stored. Not MASKED: every token is live."""
    column = tl.arange(0, PADDED_DIM)
    pointers = cache + offsets[:, None] + column[None, :]
    if MASKED:
        return tl.load(pointers, mask=live[:, None] & (column < HEAD_DIM)[None, :], other=0)
    if HEAD_DIM == PADDED_DIM:
        return tl.load(pointers)
    return tl.load(pointers, mask=(column < HEAD_DIM)[None, :], other=0)


@triton.jit
def decode_codes(raw, dtype: tl.constexpr, CACHE: tl.constexpr, NATIVE_FP8: tl.constexpr):
    """What is stored, without its scale, in the dtype of the products: exact for int8 and fp8."""
    if CACHE == "fp8":
        if NATIVE_FP8:
            return raw.to(tl.float8e4nv, bitcast=True).to(dtype)
        # The bits of an e4m3 number, moved to a float16's place, are 2^-8 of its value.
        bits = raw.to(tl.uint16)
        bits = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        return (bits.to(tl.float16, bitcast=True) * 256.0).to(dtype)
    return raw.to(dtype)


@triton.jit
def encode_int8(x):
    """Round float32 to the nearest, ties to even, and saturate."""
    x = tl.minimum(tl.maximum(x, -128.0), 127.0)
    return round_to_even(x).to(tl.int8)


@triton.jit
def encode_fp8(x):
    """float32 -> the bits of e4m3 (uint8), nearest, ties to even, saturated at 448."""
    size = tl.minimum(tl.abs(x), 448.0)
    bits = size.to(tl.uint32, bitcast=True)
    bits = bits + 0x7FFFF + ((bits >> 20) & 1)
    normal = (bits >> 20) - ((127 - 7) << 3)
    subnormal = round_to_even(size * 512.0).to(tl.uint32)
    code = tl.where(size < 0.015625, subnormal, normal)
    return tl.where(x < 0, code | 0x80, code).to(tl.uint8)


@triton.jit
def round_to_even(x):
    """float32 below 2^22 to a whole number: adding 1.5 * 2^23 leaves no bits for a fraction."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def softmax_step(
    q, k, v, top, total, sums, visible, scale, cap, HAS_SOFTCAP: tl.constexpr, MASKED: tl.constexpr
):
    """One tile of keys [N, D] and values [N, D] taken into the running softmax, to base 2."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if HAS_SOFTCAP:
        scores = cap - 2.0 * cap / (tl.exp2(scores) + 1.0)
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    fade = tl.exp2(top - higher)
    total = total * fade + tl.sum(weights, 1)
    sums = tl.dot(weights.to(v.dtype), v, sums * fade[:, None], input_precision="ieee")
    return higher, total, sums


@triton.jit
def add_sinks(top, total, sums, sinks, heads, live):
    """The sinks' share of the softmax's denominator."""
    sink = tl.load(sinks + heads, mask=live, other=0.0) * LOG2E
    higher = tl.maximum(top, sink)
    fade = tl.exp2(top - higher)
    return higher, total * fade + tl.exp2(sink - higher), sums * fade[:, None]


@triton.jit
def visible_range(past_lengths, new_lengths, row, blocks, window, BLOCK_SIZE: tl.constexpr):
    """(first, end) of the cached tokens that the one new token of a row sees."""
    end = tl.load(past_lengths + row) + tl.load(new_lengths + row)
    end = tl.minimum(end, blocks * BLOCK_SIZE)
    return tl.maximum(0, end - window), end


@triton.jit
def split_size(seen, splits, MIN_TOKENS: tl.constexpr):
    """Tokens of one split: whole multiples of MIN_TOKENS, so that late splits may be empty."""
    return tl.cdiv(tl.cdiv(seen, splits), MIN_TOKENS) * MIN_TOKENS
