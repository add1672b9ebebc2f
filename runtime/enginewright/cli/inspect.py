"""``enginewright inspect``: what an artifact holds, without loading its engine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from enginewright.cli.engine_options import ArtifactName
from enginewright.cli.text import size, table
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import (
    EngineEntry,
    Manifest,
    NvidiaEntry,
    PluginEntry,
    ProfileEntry,
    TuningEntry,
)
from enginewright.runtime.doctor.needs import kv_bytes_per_token


@click.command()
@click.argument("artifact", type=ArtifactName(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(artifact: Path, as_json: bool) -> None:
    """Show the source, engines, limits, files and conformance of ARTIFACT."""
    opened = Artifact.open(artifact, verify="never")
    digest = opened.digest()
    if as_json:
        click.echo(json.dumps(as_data(opened.manifest, digest), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(_page(opened.manifest, digest)))


def as_data(manifest: Manifest, digest: str) -> dict[str, Any]:
    """The manifest as plain data, with what follows from it."""
    data: dict[str, Any] = json.loads(manifest.to_json())
    data["digest"] = digest
    data["total_bytes"] = manifest.total_bytes
    for entry, engine in zip(data["engines"], manifest.engines, strict=True):
        entry["kv"]["bytes_per_token"] = kv_bytes_per_token(engine.kv)
    return data


def _page(manifest: Manifest, digest: str) -> Iterator[str]:
    source = manifest.source
    yield f"{manifest.name}  ({digest})"
    yield f"source       {source.kind}: {source.reference}"
    if source.revision is not None:
        yield f"revision     {source.revision}"
    yield f"             {source.digest}"
    yield f"architecture {source.architecture}"
    yield f"end tokens   {', '.join(map(str, manifest.eos_token_ids)) or 'none'}"
    for engine in manifest.engines:
        yield ""
        yield from _engine(engine, manifest.tuning)
    if manifest.tuning is not None:
        yield ""
        yield from _tuning(manifest.tuning)
    yield "\nsampling defaults"
    yield from _sampling(manifest)
    yield "\nfiles"
    yield from _files(manifest)
    yield "\nconformance with the reference"
    yield from _conformance(manifest)
    yield f"\nbuilt with {', '.join(f'{name} {v}' for name, v in manifest.tools.items())}"


def _engine(engine: EngineEntry, tuning: TuningEntry | None) -> Iterator[str]:
    kv, steps, cost = engine.kv, engine.steps, kv_bytes_per_token(engine.kv)
    yield f"engine       {engine.target} {engine.precision}, plan {engine.plan}"
    yield f"limits       {engine.limits.max_context} tokens a row, {engine.limits.max_batch} rows"
    yield f"steps        decode {steps.decode}, prefill {steps.prefill}, extend {steps.extend} rows"
    blocks = f" of {kv.block_size}" if kv.block_size else ""
    yield (
        f"cache        {size(cost) if cost is not None else 'unknown size'} a token: "
        f"{kv.layers} layers x {kv.kv_heads} heads x {kv.head_dim}, {kv.dtype}, {kv.layout}{blocks}"
    )
    yield f"invariant    {'yes' if engine.batch_invariant else 'no'} (same logits in any batch)"
    if engine.library is not None:
        yield f"native code  {engine.library}, for {engine.platform}"
    if engine.cpu_kernels is not None and tuning is not None:
        yield f"kernels      {engine.cpu_kernels}, the fastest on {tuning.processor}"
    if engine.nvidia is not None:
        yield from _nvidia(engine, engine.nvidia)
    yield f"fingerprint  {engine.fingerprint}"


def _nvidia(engine: EngineEntry, nvidia: NvidiaEntry) -> Iterator[str]:
    later = " and later" if nvidia.later else ""
    yield f"library      {nvidia.library} {nvidia.library_version}"
    yield f"capabilities {', '.join(nvidia.capabilities)}{later}"
    yield f"weights      {size(nvidia.weights_bytes)} of device memory at least"
    if engine.top_logits:
        yield f"logits       on the device, {engine.top_logits} of each row come to the host"
    for profile in nvidia.profiles:
        yield f"profile      {profile.name}: {_shapes(profile)}"
    if nvidia.aliases:
        output, source = next(iter(nvidia.aliases.items()))
        yield (
            f"aliases      {len(nvidia.aliases)} outputs share the memory of an input, as "
            f"{output} of {source}"
        )
    for plugin in nvidia.plugins:
        yield _plugin(engine, plugin)


def _shapes(profile: ProfileEntry) -> str:
    """The lowest and the highest shape of each input but the caches, which are many."""
    shown = []
    for name, (lowest, _, highest) in profile.shapes.items():
        if not name.startswith(("k_cache.", "v_cache.")):
            shown.append(f"{name} {list(lowest)} to {list(highest)}")
    return ", ".join(shown)


def _plugin(engine: EngineEntry, plugin: PluginEntry) -> str:
    folder = plugin.kernels.rpartition("/")[0]
    held = [name for name in engine.files if name.startswith(f"{folder}/")]
    kernels = len(held) - (plugin.kernels in held)
    return (
        f"plugin       {plugin.namespace}::{plugin.name} {plugin.version}, "
        f"{kernels} kernels, ABI {plugin.abi}"
    )


def _tuning(tuning: TuningEntry) -> Iterator[str]:
    by = "" if tuning.chosen_by == "all" else f", chosen by {tuning.chosen_by}"
    yield f"tuned on {tuning.processor} with {tuning.threads} threads (ms){by}"
    works = list(next(iter(tuning.seconds.values())))
    timed = [
        (plan, kernels, seconds)
        for plan, alone in tuning.seconds.items()
        for kernels, seconds in (tuning.cpu_kernels.get(plan) or {"": alone}).items()
    ]
    rows = [
        (plan, kernels, *(f"{seconds[work] * 1e3:.1f}" for work in works))
        for plan, kernels, seconds in timed
    ]
    yield table(("plan", "kernels", *works), rows)


def _sampling(manifest: Manifest) -> Iterator[str]:
    for name, default in manifest.sampling_defaults.items():
        yield f"  {name} = {default.value}  (from {default.origin})"
    if not manifest.sampling_defaults:
        yield "  none: temperature 1, the whole distribution"


def _files(manifest: Manifest) -> Iterator[str]:
    rows = [(path, size(entry.size)) for path, entry in sorted(manifest.files.items())]
    yield table(("file", "size"), [*rows, ("total", size(manifest.total_bytes))])


def _conformance(manifest: Manifest) -> Iterator[str]:
    if not manifest.conformance:
        yield "  not measured"
    for plan, report in manifest.conformance.items():
        kernels = report.get("cpu_kernels")
        with_ = "" if kernels is None else f", kernels {kernels}"
        yield f"plan {plan}{with_}{_where_measured(report)}"
        rows = [conformance_row(**row) for row in report["rows"]]
        yield table(("measure", "value", "bound", "result"), rows)


def _where_measured(report: Mapping[str, Any]) -> str:
    """Of a graph that was interpreted at build, because no device was there to run the engine."""
    return f": graph {report['graph']}, device {report['device']}" if "graph" in report else ""


def conformance_row(name: str, value: float, bound: str, passed: bool) -> tuple[str, ...]:
    """One row of the conformance table; a measure without a bound has no result."""
    result = ("ok" if passed else "MISSED") if bound else ""
    return name, f"{value:.6g}", bound, result
