"""The cache of an engine's layout, within the bytes that there are for it."""

from __future__ import annotations

import logging

from enginewright.runtime.engine import EngineInfo
from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.kv_cache.blocks import BlockCache
from enginewright.runtime.kv_cache.cache import KVCache
from enginewright.runtime.kv_cache.slots import SlotCache

LEAST_CACHE = 2
"""Tokens: one of a prompt and one of its output. Slots of no fixed size have an even number."""

logger = logging.getLogger(__name__)


def open_cache(info: EngineInfo, memory: int | None, keep: bool, *, beside: int = 0) -> KVCache:
    """The cache within ``memory`` bytes; without them, the engine's limits bound it.

    ``beside``: what a token of the same rows takes in other caches that share these bytes.
    """
    rows = min(info.max_batch, info.steps.decode)
    tokens = None if memory is None else memory // (info.kv_bytes_per_token + beside)
    least = max(LEAST_CACHE, info.kv_block_size)
    if tokens is not None and tokens < least:
        raise EnginewrightError(
            f"{_held(info, memory, tokens, beside)}: at least {_bytes(info, least, beside)} bytes "
            f"are needed, and {_bytes(info, info.max_context, beside)} for one request of "
            f"max_context={info.max_context} tokens"
        )
    if info.kv_layout == "slots":
        exact = info.batch_invariant and info.chunk_invariant
        size = info.kv_block_size or None
        return SlotCache(rows, info.max_context, tokens, keep=keep, invariant=exact, slot_size=size)
    blocks = -(-info.max_context // info.kv_block_size) * rows
    if tokens is not None:
        blocks = min(blocks, tokens // info.kv_block_size)
    return BlockCache(
        rows,
        info.max_context,
        info.kv_block_size,
        blocks,
        keep=keep,
        grow_first=tokens is not None,
        invariant=info.step_invariant,
    )


def check_context(
    info: EngineInfo, cache: KVCache, memory: int | None, *, asked: bool, beside: int = 0
) -> None:
    """Say where the bytes hold no request of max_context tokens.

    That is a warning, and an EnginewrightError if somebody ``asked`` for that max_context.
    """
    longest, wanted = cache.max_length, info.max_context
    if memory is None or longest >= wanted:
        return
    held, needed = _held(info, memory, longest, beside), _bytes(info, wanted, beside)
    if asked:
        raise EnginewrightError(
            f"{held}, and one request of max_context={wanted} tokens takes {needed} bytes: raise "
            f"kv_cache_memory_bytes to {needed}, lower max_context to {longest}, or leave "
            f"max_context out to have what fits"
        )
    logger.warning(
        "%s: a request may have so many, not the engine's max_context=%d, for which it takes "
        "kv_cache_memory_bytes=%d",
        held,
        wanted,
        needed,
    )


def _held(info: EngineInfo, memory: int | None, tokens: int, beside: int) -> str:
    each = f"{info.kv_bytes_per_token + beside} bytes each"
    shared = ", with those of the draft's cache" if beside else ""
    return f"kv_cache_memory_bytes={memory} holds {tokens} tokens ({each}{shared})"


def _bytes(info: EngineInfo, tokens: int, beside: int) -> int:
    """What so many tokens of one row take, in whole blocks."""
    unit = info.kv_block_size or LEAST_CACHE
    return -(-tokens // unit) * unit * (info.kv_bytes_per_token + beside)
