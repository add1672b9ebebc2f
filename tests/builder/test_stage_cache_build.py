"""What a second build takes over: by the recipe's fields, and when the cache is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginewright.builder.cache import entries
from enginewright.builder.pipeline import build
from enginewright.builder.recipe import make_recipe
from enginewright.runtime import LLM, SamplingParams
from enginewright.runtime.errors import ConformanceError

LOOSE = {"min_top1_agreement": 0.2, "max_mean_kl": 3.0, "max_perplexity_increase": 2.0}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("enginewright.builder.targets.operators.compile_library", lambda: None)


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: Any) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), {})


@pytest.fixture
def ran(checkpoint: Path, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """``ran(**changes)``: builds, and says why each stage ran; those that did not are left out."""

    def ran(**changes: Any) -> dict[str, str]:
        told: list[str] = []
        fields: dict[str, Any] = {
            "name": "tiny",
            "source": {"path": str(checkpoint)},
            "target": "cpu",
            "precision": "int8",
            "limits": {"max_context": 128, "max_batch": 4},
            "conformance": {"int8": LOOSE, "int4": LOOSE, "fp16": LOOSE},
        }
        recipe = make_recipe(fields | changes)
        build(recipe, tmp_path / "out", progress=lambda line: None, explain=told.append)
        lines = [line.split(": ", 2) for line in told]
        return {stage: why for stage, what, why in lines if what == "ran"}

    return ran


def test_only_what_depends_on_a_change_runs_again(ran: Callable[..., dict[str, str]]):
    assert list(ran()) == ["export", "reference", "compile", "conformance"]
    assert ran() == {}
    looser = LOOSE | {"max_mean_kl": 4.0}
    assert ran(conformance={"int8": looser}) == {
        "conformance": "changed: threshold.max_mean_kl (3.0 -> 4.0)"
    }
    found = ran(precision="int4")
    assert found.keys() == {"compile", "conformance"}
    assert found["compile"] == "changed: recipe.precision (int8 -> int4)"
    found = ran(limits={"max_context": 64, "max_batch": 4})
    assert found.keys() == {"reference", "compile", "conformance"}
    assert found["reference"] == "changed: max_context (128 -> 64)"


def test_a_taken_over_artifact_is_the_same_to_the_last_byte(
    ran: Callable[..., Any], tmp_path: Path
):
    artifact = tmp_path / "out" / "tiny"
    ran()
    first = contents(artifact)
    with LLM(artifact, threads=1) as llm:
        params = SamplingParams(temperature=0, max_tokens=4)
        answer = llm.generate([5, 6, 7], params)[0].outputs[0].token_ids
    assert ran() == {}
    assert contents(artifact) == first
    with LLM(artifact, threads=1) as llm:
        assert llm.generate([5, 6, 7], params)[0].outputs[0].token_ids == answer
    evidence = json.loads((artifact / "evidence" / "build.json").read_text())
    assert all(stage["cached"] for name, stage in evidence["stages"].items() if name in STAGES)
    assert {each["stage"]: each["hit"] for each in evidence["cache"]} == dict.fromkeys(STAGES, True)


STAGES = ("export", "reference", "compile", "conformance")


def test_a_missed_threshold_is_not_remembered_as_passed(ran: Callable[..., Any]):
    strict = {"int8": LOOSE | {"max_mean_kl": 0.0}}
    for _ in range(2):
        with pytest.raises(ConformanceError, match="MISSED"):
            ran(conformance=strict)


@pytest.mark.parametrize("stage", STAGES)
def test_a_damaged_entry_is_made_again(ran: Callable[..., dict[str, str]], stage: str):
    ran()
    (entry,) = (each for each in entries() if each.stage == stage)
    largest = max(entry.files, key=lambda name: entry.files[name].size)
    path = entry.folder / largest
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = ran()
    assert list(found) == [stage]
    assert f"damaged ({largest} has another SHA-256" in found[stage]
    assert ran() == {}


def test_a_graph_that_is_interpreted_is_lowered_again_for_conformance(
    ran: Callable[..., dict[str, str]],
):
    assert "compile" in ran(target="cuda", precision="fp16")
    looser = {"fp16": LOOSE | {"max_mean_kl": 4.0}}
    assert list(ran(target="cuda", precision="fp16", conformance=looser)) == ["conformance"]


def contents(artifact: Path) -> dict[str, bytes]:
    """All but the evidence."""
    return {
        path.relative_to(artifact).as_posix(): path.read_bytes()
        for path in artifact.rglob("*")
        if path.is_file() and "evidence" not in path.relative_to(artifact).parts
    }
