"""What the manifest says of an engine for NVIDIA GPUs, taken from the network that was built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from enginewright.builder.targets import CompileRequest
from enginewright.builder.targets.entries import tensor_entries
from enginewright.builder.targets.tensorrt.job import Job, Outcome
from enginewright.builder.targets.tensorrt.profiles import prefill_rows, step_tokens
from enginewright.runtime.artifact.manifest import (
    EngineEntry,
    KVEntry,
    NvidiaEntry,
    PluginEntry,
    ProfileEntry,
    StepsEntry,
    TensorEntry,
)
from enginewright.runtime.artifact.native_code import this_platform

_SUFFIX = ".out"


@dataclass(frozen=True)
class Coverage:
    """Compute capabilities: those that an engine is ``built_for``, and those it ``runs_on``;
    ``later``: and all above the highest of these.
    """

    built_for: tuple[str, ...]
    runs_on: tuple[str, ...]
    later: bool


def engine_entry(
    request: CompileRequest,
    graph: ir.Graph,
    job: Job,
    outcome: Outcome,
    coverage: Coverage,
    plugin: PluginEntry | None,
) -> EngineEntry:
    """The entry, still without its files and their fingerprint."""
    tensors = _tensors(graph, outcome)
    by_name = {tensor.name: tensor for tensor in tensors}
    vocab_size = by_name["logits"].shape[-1]
    assert isinstance(vocab_size, int)
    return EngineEntry(
        target=job.library,
        plan=request.attention,
        precision=request.precision,
        fingerprint="",
        model="",
        files=(),
        io=tensors,
        vocab_size=vocab_size,
        kv=_kv(request, by_name["k_cache.0"].dtype),
        limits=request.limits,
        steps=_steps(request),
        batch_invariant=False,
        platform=this_platform() if job.host_code else None,
        nvidia=_nvidia(job, outcome, coverage, plugin),
        reproducible=False,
    )


def _tensors(graph: ir.Graph, outcome: Outcome) -> tuple[TensorEntry, ...]:
    """The network's tensors; what varies has the graph's name for it, which outputs lose."""
    named = {entry.name: entry.shape for entry in tensor_entries(graph)}
    return tuple(
        TensorEntry(t.name, t.direction, t.dtype, named[t.name])  # type: ignore[arg-type]
        for t in outcome.tensors
    )


def _kv(request: CompileRequest, dtype: str) -> KVEntry:
    cache, layers = request.caches[0], len(request.caches)
    if request.attention == "native":
        size = request.limits.max_context
        return KVEntry("slots", layers, cache.kv_heads, cache.head_dim, dtype, size)
    size = request.block_size
    return KVEntry("paged", layers, cache.kv_heads, cache.head_dim, dtype, size)


def _steps(request: CompileRequest) -> StepsEntry:
    """With native layers, what pads a short row of several would be written past its slot's end."""
    rows, tokens = prefill_rows(request.limits), step_tokens(request.limits)
    extend = 1 if request.attention == "native" else rows
    return StepsEntry(request.limits.max_batch, rows, extend, tokens)


def _nvidia(
    job: Job, outcome: Outcome, coverage: Coverage, plugin: PluginEntry | None
) -> NvidiaEntry:
    outputs = (tensor.name for tensor in outcome.tensors if tensor.direction == "output")
    return NvidiaEntry(
        library=job.library,  # type: ignore[arg-type]
        library_version=outcome.version,
        capabilities=coverage.runs_on,
        later=coverage.later,
        profiles=tuple(ProfileEntry(p.name, p.shapes) for p in job.profiles),  # type: ignore[arg-type]
        aliases={n: n.removesuffix(_SUFFIX) for n in outputs if n.endswith(_SUFFIX)},
        plugins=() if plugin is None else (plugin,),
        weights_bytes=Path(job.weights).stat().st_size,
        host_code=job.host_code,
    )
