"""``kv_cache_memory_bytes``: what it holds, what it does to max_context, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime import LLM, EnginewrightError
from enginewright.runtime.scheduling.core import EngineCore

PER_TOKEN = 512
"""Bytes of the tiny artifact's cache."""


@pytest.mark.parametrize(("block_size", "needed"), [(0, 602 * 8), (16, 608 * 8)])
def test_a_context_that_was_asked_for_is_held_or_refused(
    null_engine: Any, block_size: int, needed: int
) -> None:
    engine = null_engine(max_context=601, block_size=block_size)
    whole = EngineCore(engine, kv_cache_memory_bytes=needed, fixed_context=True)
    assert whole.describe().max_context == 601
    with pytest.raises(EnginewrightError) as caught:
        EngineCore(engine, kv_cache_memory_bytes=needed - 8, fixed_context=True)
    held = 600 if block_size == 0 else 592
    assert str(caught.value) == (
        f"kv_cache_memory_bytes={needed - 8} holds {held} tokens (8 bytes each), and one request "
        f"of max_context=601 tokens takes {needed} bytes: raise kv_cache_memory_bytes to {needed}, "
        f"lower max_context to {held}, or leave max_context out to have what fits"
    )


def test_what_the_bytes_lower_is_said(null_engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    engine = null_engine(max_context=600)
    with caplog.at_level(logging.WARNING):
        assert EngineCore(engine, kv_cache_memory_bytes=8 * 600).describe().max_context == 600
        assert EngineCore(engine).describe().max_context == 600
        assert not caplog.records
        assert EngineCore(engine, kv_cache_memory_bytes=8 * 40).describe().max_context == 40
    (record,) = caplog.records
    assert record.getMessage() == (
        "kv_cache_memory_bytes=320 holds 40 tokens (8 bytes each): a request may have so many, not "
        "the engine's max_context=600, for which it takes kv_cache_memory_bytes=4800"
    )


def test_too_little_for_any_request_is_refused_with_the_bytes(null_engine: Any) -> None:
    said = (
        r"^kv_cache_memory_bytes=120 holds 15 tokens \(8 bytes each\): at least 128 bytes are "
        r"needed, and 4864 for one request of max_context=601 tokens$"
    )
    with pytest.raises(EnginewrightError, match=said):
        EngineCore(null_engine(max_context=601, block_size=16), kv_cache_memory_bytes=120)


@pytest.mark.parametrize("name", ["max_context", "max_model_len"])
def test_an_llm_refuses_a_context_beyond_its_bytes(
    tiny_artifact: Path, closed_engines: list[Any], name: str
) -> None:
    options: dict[str, Any] = {"threads": 1, "kv_cache_memory_bytes": PER_TOKEN * 90}
    with pytest.raises(EnginewrightError, match=r"holds 90 tokens .* max_context=91 tokens takes"):
        LLM(tiny_artifact, **options, **{name: 91})
    assert len(closed_engines) == 1
    with LLM(tiny_artifact, **options, **{name: 90}) as llm:
        assert llm.max_context == 90
