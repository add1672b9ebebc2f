"""What a draft's cache may hold: no more than its target can use, within the bytes of both."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime import LLM, EnginewrightError, SamplingParams
from enginewright.runtime.backends.onnxruntime import OnnxRuntimeEngine
from enginewright.runtime.engine import EngineInfo

PER_TOKEN = 512
"""Bytes of the tiny artifact's cache."""


@pytest.fixture(autouse=True)
def _drafted_for(monkeypatch: pytest.MonkeyPatch, always: Any) -> None:
    """The tiny artifact is, whatever the clock says."""
    describe = OnnxRuntimeEngine.describe

    def said(engine: OnnxRuntimeEngine) -> EngineInfo:
        return dataclasses.replace(describe(engine), step_invariant=True)

    monkeypatch.setattr(OnnxRuntimeEngine, "describe", said)
    monkeypatch.setattr("enginewright.runtime.speculation.speculator.Governor", always)


def _draft(llm: LLM) -> Any:
    assert llm._core is not None
    assert llm._core._speculator is not None
    return llm._core._speculator._proposer


def test_a_drafts_cache_is_held_to_what_its_target_can_use(
    tiny_artifact: Path, tmp_path: Path, manifest_writer: Any
) -> None:
    config = {"model": str(tiny_artifact), "num_speculative_tokens": 4}
    limits: dict[str, Any] = {"max_batch": 2, "max_context": 100}
    with LLM(tiny_artifact, threads=1, speculative_config=config, **limits) as llm:
        draft = _draft(llm)
        assert draft._cache.max_length == 100
        assert draft._cache.free_rows == 2
        described = draft._engine.describe()
        assert (described.max_batch, described.max_context) == (2, 100)
    small = Path(shutil.copytree(tiny_artifact, tmp_path / "small"))
    entry = llm.manifest.engines[0]
    lowered = dataclasses.replace(entry.limits, max_batch=1, max_context=50)
    manifest_writer(small, dataclasses.replace(entry, limits=lowered))
    config["model"] = str(small)
    with LLM(tiny_artifact, threads=1, speculative_config=config, **limits) as llm:
        assert (_draft(llm)._cache.max_length, _draft(llm)._cache.free_rows) == (50, 1)


def test_the_bytes_are_for_the_drafts_cache_too(
    tiny_artifact: Path, closed_engines: list[Any]
) -> None:
    memory = 2 * PER_TOKEN * 90
    options: dict[str, Any] = {
        "threads": 1,
        "kv_cache_memory_bytes": memory,
        "speculative_config": {"model": str(tiny_artifact), "num_speculative_tokens": 4},
    }
    with LLM(tiny_artifact, **options) as llm:
        assert llm.max_context == _draft(llm)._cache.max_length == 90
        params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
        llm.generate([[n, 7, n] for n in range(8)], params)
        assert llm.speculation is not None
        assert llm.speculation.num_draft_tokens > 0
        pools = [llm._open_core()._engine._pool, _draft(llm)._engine._pool]  # type: ignore[attr-defined]
        taken = [sum(each.nbytes for each in pool.tensors.values()) for pool in pools]
        assert min(taken) > 0
        assert sum(taken) <= memory
    closed_engines.clear()
    said = r"holds 90 tokens \(1024 bytes each, with those of the draft's cache\), and .* 94208"
    with pytest.raises(EnginewrightError, match=said):
        LLM(tiny_artifact, **options, max_context=91)
    assert len(closed_engines) == 2
    options["kv_cache_memory_bytes"] = 3 * PER_TOKEN
    closed_engines.clear()
    with pytest.raises(EnginewrightError, match=r"^speculative_config's model: .* holds 1 tokens"):
        LLM(tiny_artifact, **options)
    assert len(closed_engines) == 2
