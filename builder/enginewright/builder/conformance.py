"""The conformance stage: each plan is held to the recipe's thresholds, or nothing is published.

A plan that runs here is loaded back through the runtime, with the kernels that its entry is held
to; where our operators ran, the manifest says with which: {"cpu_kernels": "avx2", ...}. Of a target
whose device need not be here, the graph that was compiled is interpreted instead, over a part of
the reference, and the manifest says so: {"graph": "passed", "device": "not run", "rows": ..., ...}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from enginewright.builder.interpreter.engine import InterpretedEngine
from enginewright.builder.recipe import Recipe
from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.conformance import Reference, Report, judge, measure, measure_distance
from enginewright.runtime.errors import ConformanceError
from enginewright.runtime.llm import LLM

_GRAPH_PROMPTS = 3
_GRAPH_TOKENS = 16
_GRAPH_CHUNK = 48
"""Tokens a step of the text's windows: so they cover steps over a past, too."""


def check_conformance(
    recipe: Recipe,
    reference: Reference,
    folder: Path,
    engines: Sequence[EngineEntry],
    interpreted: ir.Model | None,
) -> dict[str, dict[str, Any]]:
    """What the manifest says of each plan; raises ConformanceError for one that is too far off.

    ``folder`` holds the artifact; ``interpreted`` is the graph that was compiled, if that is run
    in place of the engine.
    """
    if interpreted is None:
        return {e.plan: _of_engine(recipe, reference, folder, e) for e in engines}
    return {e.plan: _of_graph(recipe, reference, folder, e, interpreted) for e in engines}


def without_like_kernels(
    conformance: Mapping[str, Mapping[str, Any]], engines: Sequence[EngineEntry]
) -> dict[str, dict[str, Any]]:
    """The same without the names of kernels that were not chosen and give the bits of all others.

    Those are all but tiles: so a manifest does not depend on which vectors a processor has.
    """
    held = {entry.plan for entry in engines if entry.cpu_kernels is not None}
    return {
        plan: {
            key: value
            for key, value in found.items()
            if key != "cpu_kernels" or plan in held or value == "amx"
        }
        for plan, found in conformance.items()
    }


def _of_engine(
    recipe: Recipe, reference: Reference, folder: Path, entry: EngineEntry
) -> dict[str, Any]:
    with LLM.over(folder, entry) as llm:
        ran = llm.engine_info.cpu_kernels
        declared = llm.engine_info.batch_invariant
        report = judge(measure(llm, reference), _thresholds(recipe), batch_invariant=declared)
    found = _passed(recipe, entry, report).as_dict()
    return found if ran is None else {"cpu_kernels": ran, **found}


def _of_graph(
    recipe: Recipe, reference: Reference, folder: Path, entry: EngineEntry, graph: ir.Model
) -> dict[str, Any]:
    part = reference.part(_GRAPH_PROMPTS, _GRAPH_TOKENS)
    with LLM.over(folder, InterpretedEngine(graph, entry)) as llm:
        report = judge(measure_distance(llm, part, chunk=_GRAPH_CHUNK), _thresholds(recipe))
    found = _passed(recipe, entry, report).as_dict()
    del found["passed"]
    return {"graph": "passed", "device": "not run", **found}


def _thresholds(recipe: Recipe) -> dict[str, float]:
    return recipe.thresholds.model_dump(exclude_none=True)


def _passed(recipe: Recipe, entry: EngineEntry, report: Report) -> Report:
    if not report.passed:
        raise ConformanceError(
            f"{recipe.name}: plan {entry.plan} missed a threshold of its recipe, so nothing is "
            f"published\n"
            f"{report.table()}"
        )
    return report
