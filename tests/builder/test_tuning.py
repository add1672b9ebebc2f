"""``build --tune``: plans are timed here, the fastest comes first, and the manifest says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginewright.builder import tuning
from enginewright.builder.pipeline import build
from enginewright.builder.recipe import make_recipe
from enginewright.builder.targets.operators import find_compiler
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.cores import available_cores
from enginewright.runtime.errors import RecipeError
from enginewright.runtime.processor import processor_name

BOUNDS = {"min_top1_agreement": 0.5, "max_mean_kl": 1.0, "max_perplexity_increase": 0.5}


def recipe(checkpoint: Path, **changes: Any) -> Any:
    fields = {
        "name": "tiny",
        "source": {"path": str(checkpoint)},
        "target": "cpu",
        "precision": "int8",
        "conformance": {"int8": BOUNDS},
        "limits": {"max_context": 96, "max_batch": 4},
    }
    return make_recipe(fields | changes)


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: Any) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), {})


def test_the_fastest_plan_comes_first(checkpoint: Path, tmp_path: Path):
    if find_compiler() is None:
        pytest.skip("no C++ compiler on this machine: there is one plan")
    lines: list[str] = []
    built = build(recipe(checkpoint), tmp_path, progress=lines.append, tuned=True)
    manifest = Artifact.open(built).manifest
    found = manifest.tuning
    assert found is not None
    assert (found.processor, found.threads) == (processor_name(), available_cores())
    assert set(found.seconds) == {"native", "plain"}
    for seconds in found.seconds.values():
        assert set(seconds) == {"decode", "batch", "prefill"}
        assert all(value > 0 for value in seconds.values())
    means = [tuning._mean(found.seconds[entry.plan]) for entry in manifest.engines]
    assert means == sorted(means)
    assert any(line.startswith("tuning: ") for line in lines)


def test_the_mean_weighs_ratios():
    fast, slow = {"decode": 1.0, "prefill": 100.0}, {"decode": 4.0, "prefill": 50.0}
    assert tuning._mean(fast) < tuning._mean(slow)


def test_what_runs_elsewhere_is_not_tuned(checkpoint: Path, tmp_path: Path):
    other = recipe(checkpoint, target="cuda", precision="fp16", conformance={})
    with pytest.raises(RecipeError, match="--tune times plans by running them"):
        build(other, tmp_path, progress=lambda line: None, tuned=True)
    assert list(tmp_path.iterdir()) == []
