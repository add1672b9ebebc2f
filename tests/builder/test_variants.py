"""Variant sets: one artifact of several engines that shares what is the same; which one runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginewright.builder.pipeline import build
from enginewright.builder.recipe import Recipe, make_recipe
from enginewright.runtime import LLM, SamplingParams
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.errors import BuildError, RecipeError
from enginewright.runtime.verification import verify_artifact

LOOSE = {"min_top1_agreement": 0.2, "max_mean_kl": 3.0, "max_perplexity_increase": 2.0}
SET: list[dict[str, Any]] = [
    {"target": "cuda", "precision": "fp16"},
    {"target": "cpu", "precision": "int8"},
    {"name": "small-cache", "target": "cpu", "precision": "int8", "kv_cache": {"dtype": "int8"}},
]


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: Any) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), {})


def recipe_for(checkpoint: Path, **changes: Any) -> Recipe:
    fields = {
        "name": "set",
        "source": {"path": str(checkpoint)},
        "variants": SET,
        "limits": {"max_context": 96, "max_batch": 4},
        "conformance": {"int8": LOOSE, "fp16": LOOSE},
    }
    return make_recipe(fields | changes)


def quietly(line: str) -> None:
    """Progress that nobody reads."""


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, tmp_path_factory: Any) -> Path:
    return build(recipe_for(checkpoint), tmp_path_factory.mktemp("set"), progress=quietly)


def test_a_set_holds_every_engine_once_and_the_tokenizer_once(artifact: Path):
    manifest = Artifact.open(artifact, verify="always").manifest
    plans = [entry.plan for entry in manifest.engines]
    assert plans[0] == "cuda-fp16.cuda"
    assert [plan for plan in plans if plan.endswith("plain")] == [
        "cpu-int8.plain",
        "small-cache.plain",
    ]
    assert list(manifest.conformance) == sorted(plans)
    assert sum("tokenizer.json" in name for name in manifest.files) == 1
    assert sum("reference.npz" in name for name in manifest.files) == 1
    assert not [path for path in artifact.iterdir() if path.name[0] == "."]
    kept = (path.name for path in (artifact / "evidence").iterdir() if path.is_dir())
    assert sorted(kept) == ["cpu-int8", "cuda-fp16", "small-cache"]


def test_equal_files_are_stored_once(artifact: Path):
    weights = artifact / "engine" / "cpu-int8" / "weights.bin"
    assert weights.samefile(artifact / "engine" / "small-cache" / "weights.bin")
    known: dict[bytes, int] = {}
    for path in (artifact / "engine").rglob("*"):
        if path.is_file():
            assert known.setdefault(path.read_bytes(), path.stat().st_ino) == path.stat().st_ino


def test_the_best_that_runs_is_taken_and_the_others_are_told(
    artifact: Path, caplog: pytest.LogCaptureFixture
):
    params = SamplingParams(temperature=0, max_tokens=4)
    with LLM(artifact, threads=1) as llm:
        assert llm.plan.startswith("cpu-int8.")
        (output,) = llm.generate([5, 6, 7], params)
        assert len(output.outputs[0].token_ids) == 4
    (line,) = (record.message for record in caplog.records if "cuda-fp16.cuda" in record.message)
    assert line.startswith("plan cuda-fp16.cuda: ")
    assert line.endswith(f"; plan {llm.plan} runs instead")
    with LLM(artifact, threads=1, plan="small-cache.plain") as llm:
        assert llm.plan == "small-cache.plain"


def test_verify_judges_each_engine_by_the_thresholds_of_its_precision(artifact: Path):
    results = verify_artifact(artifact, threads=1)
    assert results["cpu-int8.plain"].report is not None
    assert results["cpu-int8.plain"].passed
    assert results["cuda-fp16.cuda"].report is None
    assert results["cuda-fp16.cuda"].built == "passed"


def test_a_locked_set_is_the_same_again(checkpoint: Path, artifact: Path, tmp_path: Path):
    again = build(recipe_for(checkpoint), tmp_path, progress=quietly, locked=artifact)
    assert (again / "manifest.json").read_bytes() == (artifact / "manifest.json").read_bytes()
    fewer = recipe_for(checkpoint, variants=SET[:2])
    with pytest.raises(BuildError, match=r"recipe\.variants\.2\.name: small-cache is locked"):
        build(fewer, tmp_path / "other", progress=quietly, locked=artifact)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "cpu"}, "target: with variants, each of them says this itself"),
        ({"variants": [SET[0], SET[0]]}, "variants: two are called cuda-fp16"),
        ({"variants": "cpu"}, "variants: a list is wanted"),
        ({"variants": [{"target": "cpu", "precision": "fp16"}]}, "precision"),
        ({"variants": [SET[0], {"target": "cpu", "precision": "fp16"}]}, "target cpu builds"),
        ({"variants": [{"target": "cpu", "precision": "int8", "limitz": 1}]}, "limitz"),
    ],
)
def test_a_wrong_set_is_refused(checkpoint: Path, changes: dict[str, Any], said: str):
    with pytest.raises(RecipeError, match=said):
        recipe_for(checkpoint, **changes)


def test_a_set_is_not_tuned(checkpoint: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match="--tune orders the plans of one engine"):
        build(recipe_for(checkpoint), tmp_path, progress=quietly, tune_for="all")


def test_the_recipe_in_the_manifest_can_be_built(artifact: Path):
    recipe = json.loads((artifact / "manifest.json").read_text())["recipe"]
    assert [variant["target"] for variant in recipe["variants"]] == ["cuda", "cpu", "cpu"]
    assert recipe["conformance"].keys() == {"fp16", "int8"}
