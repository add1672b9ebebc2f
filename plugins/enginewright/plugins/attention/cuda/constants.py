"""The compile-time constants of each kernel, by the names that the Triton sources give them."""

from __future__ import annotations

from typing import Any

from enginewright.plugins.attention.cuda.config import KernelConfig, tile
from enginewright.plugins.attention.cuda.launch import MIN_SPLIT_TOKENS

NATIVE_FP8_SINCE = (8, 9)


def constants(
    config: KernelConfig,
    kernel: str,
    capability: str,
    native_fp8: bool | None = None,
    float32_dots: bool = False,
) -> dict[str, Any]:
    """``native_fp8``: whether fp8 is converted by the hardware; by default where it can be.
    ``float32_dots``: products of bfloat16 in float32, for the interpreter, which has no others."""
    c, cut = config, tile(config, kernel, capability)
    if native_fp8 is None:
        native_fp8 = tuple(map(int, capability.split("."))) >= NATIVE_FP8_SINCE
    head = {"HEAD_DIM": c.head_dim, "PADDED_DIM": c.padded_dim, "BLOCK_SIZE": c.block_size}
    rotary = {"ROTARY_DIM": c.rotary_dim, "INTERLEAVED": c.interleaved}
    if kernel == "cache_write":
        return {**head, **rotary, "KV_HEADS": c.kv_heads, "CACHE": c.cache, "ROWS": cut.rows}
    if kernel == "reduce":
        own = {"HEADS": c.num_heads, "HAS_SINKS": c.has_sinks, "SPLITS": cut.tokens}
        return {**head, **own, "MIN_TOKENS": MIN_SPLIT_TOKENS}
    attention = {
        **head,
        **rotary,
        "KV_HEADS": c.kv_heads,
        "GROUP": c.group,
        "HAS_SINKS": c.has_sinks,
        "HAS_SOFTCAP": c.has_softcap,
        "CACHE": c.cache,
        "NATIVE_FP8": native_fp8,
        "FLOAT32_DOTS": float32_dots,
        "ROWS": cut.rows,
        "TOKENS": cut.tokens,
    }
    return attention if kernel == "prefill" else {**attention, "MIN_TOKENS": MIN_SPLIT_TOKENS}
