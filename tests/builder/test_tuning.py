"""``build --tune``: plans and kernels are timed, the fastest come first, the manifest says why."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.builder import tuning
from enginewright.builder.pipeline import build
from enginewright.builder.recipe import make_recipe
from enginewright.builder.targets.operators import find_compiler
from enginewright.runtime import LLM
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import (
    EngineEntry,
    KVEntry,
    LimitsEntry,
    StepsEntry,
    seal,
)
from enginewright.runtime.cores import available_cores
from enginewright.runtime.errors import ConformanceError, RecipeError
from enginewright.runtime.processor import (
    CPU_KERNELS,
    INSTRUCTION_SETS,
    has_tile_kernels,
    processor_name,
)

BOUNDS = {"min_top1_agreement": 0.5, "max_mean_kl": 1.0, "max_perplexity_increase": 0.5}
SLOWER, SLOWEST = 2.0, 3.0

needs_compiler = pytest.mark.skipif(
    find_compiler() is None, reason="no C++ compiler on this machine: there is one plan"
)


def recipe(checkpoint: Path, **changes: Any) -> Any:
    fields = {
        "name": "tiny",
        "source": {"path": str(checkpoint)},
        "target": "cpu",
        "precision": "int4",
        "conformance": {"int4": BOUNDS},
        "limits": {"max_context": 96, "max_batch": 4},
    }
    return make_recipe(fields | changes)


@pytest.fixture(autouse=True)
def _nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CPU_KERNELS, raising=False)


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: Any) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), {})


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, float]], None]:
    """``timed(factors)``: the work takes so many seconds with these kernels, or "plain", and 1 with
    others. Portable kernels are tried beside the best on any processor."""
    monkeypatch.setattr(tuning, "_OTHERS", dict.fromkeys(INSTRUCTION_SETS, ("portable",)))

    def timed(factors: Mapping[str, float]) -> None:
        def run(llm: LLM) -> dict[str, float]:
            seconds = factors.get(llm.engine_info.cpu_kernels or "plain", 1.0)
            return dict.fromkeys(("decode", "batch", "prefill"), seconds)

        monkeypatch.setattr(tuning, "_run", run)

    return timed


@needs_compiler
def test_the_work_is_timed(checkpoint: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    built = build(recipe(checkpoint), tmp_path, progress=lines.append, tune_for="all")
    manifest = Artifact.open(built).manifest
    found = manifest.tuning
    assert found is not None
    assert (found.processor, found.threads) == (processor_name(), available_cores())
    assert set(found.seconds) == {"native", "plain"}
    kernels = [works for each in found.cpu_kernels.values() for works in each.values()]
    for seconds in (*found.seconds.values(), *kernels):
        assert set(seconds) == {"decode", "batch", "prefill"}
        assert all(value > 0 for value in seconds.values())
    both = {"native": {"amx", "avx512vnni"}} if has_tile_kernels() else {}
    assert {plan: set(works) for plan, works in found.cpu_kernels.items()} == both
    assert any(line.startswith("tuning: ") for line in lines)
    told = [line.partition(": decode ")[0] for line in lines if ": decode " in line]
    native = [f"plan native, kernels {name}" for name in ("amx", "avx512vnni")]
    assert told == [*(native if both else ["plan native"]), "plan plain"]


@needs_compiler
@pytest.mark.parametrize(
    ("by", "portable"), [("all", False), ("decode", True), ("batch", False), ("prefill", False)]
)
def test_one_work_may_decide(
    checkpoint: Path,
    tmp_path: Path,
    timed: Any,
    monkeypatch: pytest.MonkeyPatch,
    by: tuning.TuneFor,
    portable: bool,
) -> None:
    timed({})

    def run(llm: LLM) -> dict[str, float]:
        other = llm.engine_info.cpu_kernels == "portable"
        return {"decode": 0.5 if other else 1.0, "batch": 9.0 if other else 1.0, "prefill": 1.5}

    monkeypatch.setattr(tuning, "_run", run)
    built = build(recipe(checkpoint), tmp_path, progress=lambda line: None, tune_for=by)
    manifest = Artifact.open(built).manifest
    native = next(each for each in manifest.engines if each.plan == "native")
    assert (native.cpu_kernels == "portable") is portable
    assert manifest.tuning is not None
    assert manifest.tuning.chosen_by == by


@needs_compiler
@pytest.mark.parametrize(
    ("factors", "plans", "portable"),
    [
        ({"portable": SLOWER, "plain": SLOWEST}, ["native", "plain"], False),
        ({"portable": 0.5, "plain": SLOWEST}, ["native", "plain"], True),
        ({"portable": SLOWER, "plain": 0.5}, ["plain", "native"], False),
    ],
)
def test_the_fastest_come_first(
    checkpoint: Path, tmp_path: Path, timed: Any, factors: Any, plans: list[str], portable: bool
) -> None:
    timed(factors)
    lines: list[str] = []
    built = build(recipe(checkpoint), tmp_path, progress=lines.append, tune_for="all")
    manifest = Artifact.open(built).manifest
    native = next(each for each in manifest.engines if each.plan == "native")
    chosen = native.cpu_kernels
    assert chosen is not None
    assert [each.plan for each in manifest.engines] == plans
    assert (chosen == "portable") is portable
    assert manifest.tuning is not None
    times = {name: works["decode"] for name, works in manifest.tuning.cpu_kernels["native"].items()}
    assert times.pop("portable") == factors["portable"]
    assert list(times.values()) == [1.0], "the best that this processor has"
    assert manifest.tuning.seconds["native"]["decode"] == min(1.0, factors["portable"])
    assert manifest.tuning.seconds["plain"]["decode"] == factors["plain"]
    assert manifest.conformance["native"]["cpu_kernels"] == chosen, "what runs was verified"
    with LLM(built, plan="native") as llm:
        assert llm.engine_info.cpu_kernels == chosen


@needs_compiler
def test_the_choice_is_for_the_processor_that_it_was_timed_on(
    checkpoint: Path,
    tmp_path: Path,
    timed: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    timed({"portable": 0.5})
    built = build(
        recipe(checkpoint), tmp_path / "tuned", progress=lambda line: None, tune_for="all"
    )
    again = build(recipe(checkpoint), tmp_path / "again", progress=lambda line: None, locked=built)
    text = (built / "manifest.json").read_text("utf-8")
    assert (again / "manifest.json").read_text("utf-8") == text, "the lock has the choice"

    def run() -> tuple[str | None, bytes]:
        with caplog.at_level(logging.INFO), LLM(built, plan="native") as llm:
            return llm.engine_info.cpu_kernels, np.asarray(llm.logits(list(range(40)))).tobytes()

    chosen = run()
    assert chosen[0] == "portable"
    monkeypatch.setenv(CPU_KERNELS, "portable")
    assert run() == chosen, "the logits are those of the kernels, too"
    best = max(json.loads(text)["tuning"]["cpu_kernels"]["native"], key=INSTRUCTION_SETS.index)
    monkeypatch.setenv(CPU_KERNELS, best)
    asked = run()
    assert asked[0] == best, "who asks gets what they ask for"
    assert best == "portable" or asked[1] != chosen[1]
    monkeypatch.delenv(CPU_KERNELS)
    assert not caplog.records
    manifest = json.loads(text)
    manifest["tuning"]["processor"] = "Another One"
    (built / "manifest.json").write_text(seal(manifest), "utf-8")
    assert run() == asked
    assert "its kernels (portable) were chosen on another processor, Another One" in caplog.text


def candidates(
    precision: str = "int4", check: Callable[[EngineEntry], Any] = lambda entry: {"found": "anew"}
) -> tuple[list[tuple[str, str, Any]], list[str]]:
    """Plan, kernels and conformance of those on a processor with tiles, and what was said."""
    kv = KVEntry("paged", 1, 1, 16, "float16", 32)
    limits, steps = LimitsEntry(64, 1), StepsEntry(1, 1, 1)
    named = ("sha256:0", "engine/model.onnx", ("engine/model.onnx",), ())
    engines = [
        EngineEntry("cpu", plan, precision, *named, 64, kv, limits, steps, True, library)
        for plan, library in (("native", "engine/operators.so"), ("plain", None))
    ]
    found = {"native": {"cpu_kernels": "amx"}, "plain": {}}
    said: list[str] = []
    made = tuning.candidates(engines, found, check, said.append)
    return [(each.entry.plan, each.kernels, each.conformance) for each in made], said


TILES = ("native", "amx", {"cpu_kernels": "amx"})
BEST = ("native", "", {"cpu_kernels": "amx"})
PLAIN = ("plain", "", {})


def test_tiles_and_vectors_are_candidates() -> None:
    assert candidates() == ([TILES, ("native", "avx512vnni", {"found": "anew"}), PLAIN], [])


def test_kernels_that_do_not_conform_are_left_out() -> None:
    def check(entry: EngineEntry) -> Any:
        assert (entry.plan, entry.cpu_kernels) == ("native", "avx512vnni")
        raise ConformanceError("missed a threshold")

    found, said = candidates(check=check)
    assert found == [TILES, PLAIN]
    assert said == ["kernels avx512vnni are left out: missed a threshold"]


def test_where_kernels_are_the_same_or_were_asked_for_there_is_no_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert candidates("int8") == ([BEST, PLAIN], [])
    monkeypatch.setenv(CPU_KERNELS, "amx")
    assert candidates() == ([BEST, PLAIN], [])


def test_the_mean_weighs_ratios() -> None:
    fast, slow = {"decode": 1.0, "prefill": 100.0}, {"decode": 4.0, "prefill": 50.0}
    assert tuning._cost(fast, "all") < tuning._cost(slow, "all")
    assert tuning._cost(fast, "prefill") > tuning._cost(slow, "prefill")


def test_what_runs_elsewhere_is_not_tuned(checkpoint: Path, tmp_path: Path) -> None:
    other = recipe(checkpoint, target="cuda", precision="fp16", conformance={})
    with pytest.raises(RecipeError, match="--tune times plans by running them"):
        build(other, tmp_path, progress=lambda line: None, tune_for="all")
    assert list(tmp_path.iterdir()) == []
