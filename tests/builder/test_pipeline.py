"""The build as a whole: what it leaves behind when it succeeds, fails, or is killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginewright.builder.pipeline import build
from enginewright.builder.recipe import Recipe, make_recipe
from enginewright.builder.targets.operators import find_compiler
from enginewright.runtime import LLM, SamplingParams
from enginewright.runtime.errors import (
    ConformanceError,
    RecipeError,
    SourceError,
    UnsupportedModelError,
)


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), {})


def recipe_for(checkpoint: Path, precision: str = "fp32", **changes: Any) -> Recipe:
    return make_recipe(
        {
            "name": "tiny",
            "source": {"path": str(checkpoint)},
            "target": "cpu",
            "precision": precision,
            "limits": {"max_context": 128, "max_batch": 24},
            **changes,
        }
    )


def quietly(line: str) -> None:
    """Progress that nobody reads."""


def edited(checkpoint: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the checkpoint with another config."""
    copy = Path(shutil.copytree(checkpoint, folder / "edited"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    return copy


def test_an_artifact_is_complete(checkpoint: Path, tmp_path: Path):
    artifact = build(recipe_for(checkpoint), tmp_path, progress=quietly)
    assert artifact == tmp_path / "tiny"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    manifest = json.loads((artifact / "manifest.json").read_text())
    found = {
        path.relative_to(artifact).as_posix()
        for path in artifact.rglob("*")
        if path.is_file() and "evidence" not in path.parts
    }
    assert found == {*manifest["files"], "manifest.json"}
    plans = {"plain": True} | ({"native": True} if find_compiler() else {})
    passed = {plan: report["passed"] for plan, report in manifest["conformance"].items()}
    assert passed == plans
    assert manifest["source"]["digest"].startswith("sha256:")
    assert str(tmp_path) not in (artifact / "manifest.json").read_text()
    assert b"site-packages" not in (artifact / "engine" / "plain.onnx").read_bytes()
    stages = json.loads((artifact / "evidence" / "build.json").read_text())["stages"]
    assert list(stages) == [
        *("compile", "conformance", "export", "operators", "plan", "reference", "source")
    ]


@pytest.mark.parametrize("script", ["echo broken >&2; exit 1"])
def test_without_a_compiler_that_works_there_is_the_plain_plan(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, caplog: Any
):
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo {len(script)} && exit\n{script}\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    bounds = {"min_top1_agreement": 0.5, "max_mean_kl": 1.0, "max_perplexity_increase": 0.5}
    recipe = recipe_for(checkpoint, "int8", conformance={"int8": bounds})
    artifact = build(recipe, tmp_path / "out", progress=quietly)
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert [engine["plan"] for engine in manifest["engines"]] == ["plain"]
    assert "no native plan" in caplog.text
    assert not list((artifact / "engine").glob("*.so"))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_rounded_precisions_run(checkpoint: Path, tmp_path: Path, precision: str):
    bounds = {"min_top1_agreement": 0.5, "max_mean_kl": 1.0, "max_perplexity_increase": 0.5}
    loose = {precision: bounds}
    recipe = recipe_for(checkpoint, precision, conformance=loose)
    with LLM(build(recipe, tmp_path, progress=quietly), threads=1) as llm:
        (output,) = llm.generate([5, 6, 7], SamplingParams(temperature=0, max_tokens=4))
        assert llm.manifest.engines[0].precision == precision
    assert len(output.outputs[0].token_ids) == 4


def test_a_missed_threshold_fails_with_the_table_and_keeps_the_old_artifact(
    checkpoint: Path, tmp_path: Path
):
    artifact = build(recipe_for(checkpoint), tmp_path, progress=quietly)
    before = (artifact / "manifest.json").read_bytes()
    strict = {"int4": {"max_mean_kl": 0.0}}
    with pytest.raises(ConformanceError) as caught:
        build(recipe_for(checkpoint, "int4", conformance=strict), tmp_path, progress=quietly)
    (row,) = (line for line in str(caught.value).splitlines() if line.startswith("mean KL"))
    assert row.split()[-1] == "MISSED"
    assert (artifact / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_an_unknown_architecture_is_refused_with_those_known(checkpoint: Path, tmp_path: Path):
    other = edited(checkpoint, tmp_path, architectures=["FalconForCausalLM"])
    with pytest.raises(UnsupportedModelError, match=r"FalconForCausalLM.*LlamaForCausalLM"):
        build(recipe_for(other), tmp_path / "out", progress=quietly)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "dynamic",
        ),
        ({"hidden_act": "swoosh"}, "swoosh"),
        ({"model_type": "mistral"}, "model_type 'mistral'"),
    ],
)
def test_a_config_outside_what_agrees_is_refused(
    checkpoint: Path, tmp_path: Path, changes: dict[str, Any], said: str
):
    other = edited(checkpoint, tmp_path, **changes)
    with pytest.raises(UnsupportedModelError, match=said):
        build(recipe_for(other), tmp_path / "out", progress=quietly)


def test_an_odd_context_is_filled_to_its_end(checkpoint: Path, tmp_path: Path):
    recipe = recipe_for(checkpoint, limits={"max_context": 65, "max_batch": 24})
    with LLM(build(recipe, tmp_path, progress=quietly), threads=1) as llm:
        params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
        (output,) = llm.generate([list(range(3, 60))], params)
    assert len(output.outputs[0].token_ids) == 65 - 57


def test_a_context_beyond_the_model_is_refused(checkpoint: Path, tmp_path: Path):
    recipe = recipe_for(checkpoint, limits={"max_context": 129})
    with pytest.raises(RecipeError, match=r"limits\.max_context: 129 .* 128"):
        build(recipe, tmp_path, progress=quietly)


def test_weights_that_do_not_fit_the_config_are_refused(checkpoint: Path, tmp_path: Path):
    other = edited(checkpoint, tmp_path, intermediate_size=160)
    with pytest.raises(SourceError, match=r"gate_proj.*\(96, 64\).*\(160, 64\)"):
        build(recipe_for(other), tmp_path / "out", progress=quietly)


_BUILD = """
import sys
from pathlib import Path
from enginewright.builder.pipeline import build
from enginewright.builder.recipe import make_recipe
recipe = make_recipe({"name": "tiny", "source": {"path": sys.argv[1]}, "target": "cpu",
                      "precision": "fp32", "limits": {"max_context": 128, "max_batch": 24}})
build(recipe, Path(sys.argv[2]), progress=lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("stage", ["export", "conformance"])
def test_a_killed_build_leaves_the_old_artifact_and_the_next_succeeds(
    checkpoint: Path, tmp_path: Path, stage: str
):
    recipe = recipe_for(checkpoint)
    artifact = build(recipe, tmp_path, progress=quietly)
    before = (artifact / "manifest.json").read_bytes()
    command = [sys.executable, "-c", _BUILD, str(checkpoint), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"{stage} ..."):
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert (artifact / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == ["tiny"]
    build(recipe, tmp_path, progress=quietly)
    assert (artifact / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
