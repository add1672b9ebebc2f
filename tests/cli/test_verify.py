"""``verify``: an artifact with reference values passes, misses a bound, or is damaged."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from enginewright.cli.main import main
from enginewright.runtime.artifact.artifact import Artifact


@pytest.fixture
def artifact(tiny_artifact: Path, tmp_path: Path) -> Path:
    """A copy of an artifact that was built, with the reference values of its own build."""
    return shutil.copytree(tiny_artifact, tmp_path / "artifact")


def set_bounds(folder: Path, bounds: dict[str, float]) -> None:
    """Write the bounds into the manifest."""
    manifest = Artifact.open(folder).manifest
    precision = manifest.engines[0].precision
    recipe = {**manifest.recipe, "precision": precision, "conformance": {precision: bounds}}
    changed = dataclasses.replace(manifest, recipe=recipe)
    (folder / "manifest.json").write_text(changed.to_json(), "utf-8")


def verify(folder: Path, *arguments: str) -> Any:
    return CliRunner().invoke(main, ["verify", str(folder), "--threads", "1", *arguments])


def test_an_artifact_that_answers_as_its_reference_passes(artifact: Path) -> None:
    result = verify(artifact)

    assert result.exit_code == 0, result.output
    assert "greedy agreement" in result.stdout
    assert result.stdout.endswith("passed\n")


def test_a_missed_bound_is_exit_code_1(artifact: Path) -> None:
    set_bounds(artifact, {"max_perplexity_increase": -0.5})
    result = verify(artifact)

    assert result.exit_code == 1
    (row,) = (line for line in result.stdout.splitlines() if line.startswith("perplexity change"))
    assert row.split()[-1] == "MISSED"


@pytest.mark.parametrize(("bound", "passed"), [(0.001, True), (-0.5, False)])
def test_json_says_the_same(artifact: Path, bound: float, passed: bool) -> None:
    set_bounds(artifact, {"max_perplexity_increase": bound})
    result = verify(artifact, "--json")
    data = json.loads(result.stdout)

    assert data["passed"] is passed
    assert result.exit_code == (0 if passed else 1)
    (plan,) = data["plans"].values()
    assert plan["passed"] is passed
    assert {"name", "value", "bound", "passed"} == plan["rows"][0].keys()


def test_one_flipped_byte_is_found(artifact: Path) -> None:
    weights = artifact / Artifact.open(artifact).engine().files[-1]
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    result = verify(artifact)

    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {weights}: ")
