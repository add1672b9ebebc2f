"""``enginewright inspect``: what an artifact holds, without loading its engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from enginewright.cli.engine_options import ArtifactName
from enginewright.cli.text import size, table
from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import MANIFEST_NAME, EngineEntry, Manifest

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8": 1}


@click.command()
@click.argument("artifact", type=ArtifactName(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(artifact: Path, as_json: bool) -> None:
    """Show the source, engines, limits, files and conformance of ARTIFACT."""
    opened = Artifact.open(artifact, verify="never")
    digest = artifact_digest(opened)
    if as_json:
        click.echo(json.dumps(as_data(opened.manifest, digest), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(_page(opened.manifest, digest)))


def artifact_digest(artifact: Artifact) -> str:
    """The digest of everything in the artifact: its manifest holds every file's hash."""
    content = (artifact.path / MANIFEST_NAME).read_bytes()
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def kv_bytes_per_token(engine: EngineEntry) -> int | None:
    """Bytes of cache that one token of one row takes; None for a dtype unknown here."""
    item = _DTYPE_BYTES.get(engine.kv.dtype)
    kv = engine.kv
    return None if item is None else 2 * kv.layers * kv.kv_heads * kv.head_dim * item


def as_data(manifest: Manifest, digest: str) -> dict[str, Any]:
    """The manifest as plain data, with what follows from it."""
    data: dict[str, Any] = json.loads(manifest.to_json())
    data["digest"] = digest
    data["total_bytes"] = sum(entry.size for entry in manifest.files.values())
    for entry, engine in zip(data["engines"], manifest.engines, strict=True):
        entry["kv"]["bytes_per_token"] = kv_bytes_per_token(engine)
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
        yield from _engine(engine)
    yield "\nsampling defaults"
    yield from _sampling(manifest)
    yield "\nfiles"
    yield from _files(manifest)
    yield "\nconformance with the reference"
    yield from _conformance(manifest)
    yield f"\nbuilt with {', '.join(f'{name} {v}' for name, v in manifest.tools.items())}"


def _engine(engine: EngineEntry) -> Iterator[str]:
    kv, steps, cost = engine.kv, engine.steps, kv_bytes_per_token(engine)
    yield f"engine       {engine.target} {engine.precision}, plan {engine.plan}"
    yield f"limits       {engine.limits.max_context} tokens a row, {engine.limits.max_batch} rows"
    yield f"steps        decode {steps.decode}, prefill {steps.prefill}, extend {steps.extend} rows"
    yield (
        f"cache        {size(cost) if cost is not None else 'unknown size'} a token: "
        f"{kv.layers} layers x {kv.kv_heads} heads x {kv.head_dim}, {kv.dtype}, {kv.layout}"
    )
    yield f"invariant    {'yes' if engine.batch_invariant else 'no'} (same logits in any batch)"
    if engine.library is not None:
        yield f"native code  {engine.library}, for {engine.platform}"
    yield f"fingerprint  {engine.fingerprint}"


def _sampling(manifest: Manifest) -> Iterator[str]:
    for name, default in manifest.sampling_defaults.items():
        yield f"  {name} = {default.value}  (from {default.origin})"
    if not manifest.sampling_defaults:
        yield "  none: temperature 1, the whole distribution"


def _files(manifest: Manifest) -> Iterator[str]:
    rows = [(path, size(entry.size)) for path, entry in sorted(manifest.files.items())]
    total = sum(entry.size for entry in manifest.files.values())
    yield table(("file", "size"), [*rows, ("total", size(total))])


def _conformance(manifest: Manifest) -> Iterator[str]:
    if not manifest.conformance:
        yield "  not measured"
    for plan, report in manifest.conformance.items():
        yield f"plan {plan}"
        rows = [conformance_row(**row) for row in report["rows"]]
        yield table(("measure", "value", "bound", "result"), rows)


def conformance_row(name: str, value: float, bound: str, passed: bool) -> tuple[str, ...]:
    """One row of the conformance table; a measure without a bound has no result."""
    result = ("ok" if passed else "MISSED") if bound else ""
    return name, f"{value:.6g}", bound, result
