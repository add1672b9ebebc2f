"""What the report says: facts of manifest and evidence, put into words, tables and plots."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import MANIFEST_NAME, EngineEntry, Manifest
from enginewright.runtime.conformance import POSITIONS
from enginewright.runtime.doctor.needs import kv_bytes_per_token, needs
from enginewright.runtime.errors import ArtifactError
from enginewright.runtime.report.charts import Axes, bars, lines

Bench = Mapping[str, Any]
_WORST = 20
_DECODE = re.compile(r"between tokens at (\d+), p50")
_STREAMS = re.compile(r"(\d+) streams?")


@dataclass(frozen=True)
class Asked:
    """An artifact, others of its model to be seen beside it, and results of ``bench --json``."""

    artifact: Artifact
    beside: Sequence[Artifact] = ()
    bench: Sequence[Bench] = ()

    @property
    def all(self) -> list[Artifact]:
        return [self.artifact, *self.beside]


def content(asked: Asked, place: Path) -> dict[str, Any]:
    """The values of the page's template; ``place``: where the page will lie."""
    artifact = asked.artifact
    manifest, folder = artifact.manifest, artifact.path
    return {
        **_build(folder),
        **_lowering(folder),
        "manifest": manifest,
        "digest": artifact.digest(),
        "verdict": list(_verdict(manifest)),
        "recipe": dict(_flat(manifest.recipe)),
        "plans": manifest.conformance,
        "plots": dict(_plots(asked)),
        "bench": list(asked.bench),
        "engines": [_engine(manifest, engine) for engine in manifest.engines],
        "manifest_link": _link(folder / MANIFEST_NAME, place),
        "links": {name: _link(folder / name, place) for name in manifest.files},
        "size": manifest.total_bytes,
    }


def _link(path: Path, place: Path) -> str:
    return Path(os.path.relpath(path.resolve(), place.resolve().parent)).as_posix()


def _build(folder: Path) -> dict[str, Any]:
    with _read(folder, "build.json") as build:
        stages = build.get("stages", {})
        return {"stages": {name: _stage(each) for name, each in stages.items()}}


def _stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "seconds": float(stage["seconds"]),
        "anonymous_growth_bytes": float(stage["anonymous_growth_bytes"]),
        "cached": bool(stage.get("cached")),
    }


def _lowering(folder: Path) -> dict[str, Any]:
    with _read(folder, "lowering.json") as lowering:
        passes = lowering.get("passes", [])
        return {
            "passes": list(_passes(passes)),
            "operations": _operations(passes),
            "matrices": _matrices(lowering.get("matrices", {})),
        }


@contextlib.contextmanager
def _read(folder: Path, name: str) -> Iterator[Mapping[str, Any]]:
    """The evidence of that name, which no hash covers; raises ArtifactError where what is made of
    it fails."""
    try:
        yield _evidence(folder, name)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{folder / 'evidence' / name}: is not what a build writes ({error!r}); remove it, "
            f"which leaves that part of the page out, or build the artifact again"
        ) from error


def _evidence(folder: Path, name: str) -> Mapping[str, Any]:
    try:
        found = json.loads((folder / "evidence" / name).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _verdict(manifest: Manifest) -> Iterator[str]:
    """Sentences for somebody who reads nothing else."""
    if not manifest.conformance:
        yield "This engine was not compared with its model."
    for plan, report in manifest.conformance.items():
        missed = [row["name"] for row in report.get("rows", []) if not row["passed"]]
        bounds = (
            f"Of the recipe's bounds it missed: {', '.join(missed)}"
            if missed
            else ("It keeps to all bounds of the recipe")
        )
        yield f"Plan {plan}: {_distance(report.get('measures', {}))}{bounds}."
        if report.get("device") == "not run":
            yield "No device ran it when it was built: the graph was interpreted instead."


def _distance(measures: Mapping[str, float]) -> str:
    if "top1_agreement" not in measures:
        return ""
    change = measures["perplexity"] / measures["reference_perplexity"] - 1
    return (
        f"its likeliest next token is that of the original model in "
        f"{measures['top1_agreement']:.1%} of the places of a text, its perplexity is "
        f"{abs(change):.2%} {'higher' if change >= 0 else 'lower'}. "
    )


def _plots(asked: Asked) -> Iterator[tuple[str, str]]:
    plans = asked.artifact.manifest.conformance
    yield (
        "kl",
        lines(
            "KL divergence by position",
            Axes("position in the text (tokens)", "mean KL (nats)", log=True),
            {plan: _curve(report, "kl_by_position") for plan, report in plans.items()},
        ),
    )
    yield (
        "top1",
        lines(
            "Top-1 agreement by position",
            Axes("position in the text (tokens)", "top-1 agreement"),
            {plan: _curve(report, "top1_by_position") for plan, report in plans.items()},
        ),
    )
    yield "agreement", bars("Top-1 agreement by precision", _agreements(asked.all), most=1.0)
    decode = Axes("tokens of context", "decode, tokens/s")
    contexts = _figures(asked.bench, _DECODE, inverse=True)
    yield "decode", lines("Decode by context", decode, contexts)
    batch = Axes("streams", "tokens/s of all streams")
    yield "throughput", lines("Throughput by batch", batch, _figures(asked.bench, _STREAMS))


def _curve(report: Mapping[str, Any], name: str) -> list[tuple[float, float]]:
    values = report.get("measures", {}).get(name, ())
    return [((at + 0.5) * POSITIONS, value) for at, value in enumerate(values)]


def _agreements(artifacts: Sequence[Artifact]) -> dict[str, float]:
    """By precision and plan; of two artifacts alike, the second with its folder's name."""
    found: dict[str, float] = {}
    for artifact in artifacts:
        for engine in artifact.manifest.engines:
            report = artifact.manifest.conformance.get(engine.plan, {})
            value = report.get("measures", {}).get("top1_agreement")
            name = f"{engine.precision} {engine.plan}"
            if value is not None:
                found[name if name not in found else f"{artifact.path.name}: {name}"] = value
    return found


def _figures(
    bench: Sequence[Bench], name: re.Pattern[str], *, inverse: bool = False
) -> dict[str, list[tuple[float, float]]]:
    """Medians of the figures whose names hold a number; milliseconds become a rate."""
    found: dict[str, list[tuple[float, float]]] = {}
    for result in bench:
        for figure, told in result["figures"].items():
            match = name.fullmatch(figure)
            if match is not None and told["median"] > 0:
                median = float(told["median"])
                point = float(match[1]), 1000 / median if inverse else median
                found.setdefault(_label(result), []).append(point)
    return {label: sorted(points) for label, points in found.items()}


def _label(bench: Bench) -> str:
    return f"{bench.get('artifact', 'unnamed')}, {bench.get('threads', '?')} threads"


def _engine(manifest: Manifest, engine: EngineEntry) -> dict[str, Any]:
    """What an engine takes, and a table of rows against contexts."""
    per_token, need = kv_bytes_per_token(engine.kv), needs(engine, manifest.files)
    context, batch = engine.limits.max_context, engine.limits.max_batch
    contexts = sorted({max(1, context // share) for share in (8, 4, 2, 1)})
    rows = sorted({max(1, batch // share) for share in (32, 8, 2, 1)})
    return {
        "entry": engine,
        "limits": asdict(engine.limits),
        "weights": need.weights,
        "per_token": per_token,
        "contexts": contexts,
        "cache": {row: [row * length * (per_token or 0) for length in contexts] for row in rows},
    }


def _passes(passes: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each pass with the operations before and after it; a plan's first goes on from all plans'."""
    last: dict[str | None, Mapping[str, int]] = {}
    for each in passes:
        after = each["operations"]
        before = last.get(each["plan"], last.get(None, {}))
        changed = {
            name: (before.get(name, 0), after.get(name, 0))
            for name in sorted(before.keys() | after.keys())
            if before and before.get(name, 0) != after.get(name, 0)
        }
        yield {
            "name": each["pass"],
            "plan": each["plan"] or "all",
            "before": sum(before.values()),
            "after": sum(after.values()),
            "changed": changed,
        }
        last[each["plan"]] = after


def _operations(passes: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, int]]:
    """The operations of the exported graph, and of each plan's last."""
    found = {"exported": passes[0]["operations"]} if passes else {}
    found |= {each["plan"] or "lowered": each["operations"] for each in passes[1:]}
    plans = [name for name in found if name not in ("exported", "lowered")]
    if plans:
        found.pop("lowered", None)
    return found


def _matrices(matrices: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Errors of rounded matrices, the worst first; of the others the source's blocks stand."""
    errors = {name: each["error"] for name, each in matrices.items() if each["error"] is not None}
    worst = sorted(errors.items(), key=lambda item: -item[1])
    shown = {f"{name} ({matrices[name]['bits']} bits)": error for name, error in worst[:_WORST]}
    return {
        "count": len(matrices),
        "carried": len(matrices) - len(errors),
        "errors": dict(worst),
        "bits": {name: each["bits"] for name, each in matrices.items()},
        "plot": bars("Relative error of the worst matrices", shown),
    }


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value
