"""Targets ``tensorrt_rtx`` and ``tensorrt``: one builder, given the library that is installed.

The graph is lowered, its weights go to a file of the moment, and a process of its own makes the
engine. TensorRT-RTX builds an engine without a GPU, but cannot open one: so the manifest gets all
that the network says before it is built. lowering.py has the table of the engine's tensors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import onnx
import onnx_ir as ir

from enginewright.builder.cache import digest
from enginewright.builder.publish import EVIDENCE, write_json
from enginewright.builder.recorder import Recorder
from enginewright.builder.stage_inputs import code_of_folder, tool_versions
from enginewright.builder.targets import CompileRequest, Target
from enginewright.builder.targets.external_data import WeightsFile
from enginewright.builder.targets.operators import compiler_version, find_compiler
from enginewright.builder.targets.tensorrt import (
    capabilities,
    debug_precision,
    kernels,
    native_limits,
)
from enginewright.builder.targets.tensorrt.entry import Coverage, engine_entry
from enginewright.builder.targets.tensorrt.header import check_header
from enginewright.builder.targets.tensorrt.job import Initializer, Job, Outcome
from enginewright.builder.targets.tensorrt.library import (
    Library,
    Name,
    find_library,
    gpu_capability,
)
from enginewright.builder.targets.tensorrt.lowering import lower
from enginewright.builder.targets.tensorrt.plugin_library import compile_plugin, find_headers
from enginewright.builder.targets.tensorrt.process import compile_job
from enginewright.builder.targets.tensorrt.profiles import make_profiles
from enginewright.builder.targets.tensorrt.timing_cache import timing_cache
from enginewright.plugins.attention.cuda.kernel_set import KernelSet
from enginewright.runtime.artifact.artifact import sha256_file
from enginewright.runtime.artifact.manifest import EngineEntry, PluginEntry
from enginewright.runtime.artifact.native_code import remember

_ENGINE = "engine/model.engine"
_KERNELS = "engine/kernels"


class _TensorRTTarget(Target):
    """What the two have in common.

    An engine's bytes differ from build to build, by little: so its fingerprint digests what it was
    made from (graph, weights, profiles, options, kernels, the library's version), not its file.
    """

    interpreted = True
    library: ClassVar[Name]

    def check(self, attention: str) -> None:
        find_library(self.library)
        if attention == "plugin":
            kernels.check_compiler()
            find_headers()

    @abstractmethod
    def coverage(self, request: CompileRequest) -> Coverage:
        """What the engine is built for, and what it runs on."""

    def check_graph(self, graph: ir.Graph, request: CompileRequest) -> None:
        """Raise UnsupportedModelError, RecipeError for what this library is known not to build."""

    @abstractmethod
    def configured(self, job: Job, request: CompileRequest, library: Library) -> Job:
        """The job with what only this library is told."""

    def lower(self, model: ir.Model, request: CompileRequest) -> None:
        lower(
            model,
            precision=request.precision,
            attention=request.attention,
            max_context=request.limits.max_context,
            kv_cache=request.kv_dtype,
            block_size=request.block_size,
            kv_scales=request.kv_scales,
            top_logits=request.top_logits,
        )

    def compile(self, model: ir.Model, request: CompileRequest) -> tuple[EngineEntry, ...]:
        library = find_library(self.library)
        coverage = self.coverage(request)
        capabilities.check(request.precision, coverage.built_for)
        recorder = Recorder(model)
        recorder.run(self.lower, model, request)
        recorder.write(request.folder)
        self.check_graph(model.graph, request)
        (request.folder / "engine").mkdir()
        plugin, files = _kernels(model.graph, request, coverage)
        with TemporaryDirectory(dir=request.folder, prefix=".weights-") as scratch:
            job = _job(model, request, library.name, Path(scratch))
            job = self.configured(job, request, library)
            job, plugin = _embed(job, plugin, request)
            made_from = _fingerprint(job, library, plugin)
            outcome = compile_job(job, library, request.progress)
            _report(outcome, job, request)
            entry = engine_entry(request, model.graph, job, outcome, coverage, plugin)
        if library.name == "tensorrt_rtx":
            check_header(request.folder / _ENGINE, coverage.built_for)
        if job.host_code:  # a plugin or a runtime of its own, which was put there here
            remember(sha256_file(request.folder / _ENGINE))
        return (replace(entry, fingerprint=made_from, model=_ENGINE, files=(_ENGINE, *files)),)

    def tools(self, engines: tuple[EngineEntry, ...]) -> Mapping[str, str]:
        versions: dict[str, str] = {self.library: find_library(self.library).version}
        plugins = [each for engine in engines if engine.nvidia for each in engine.nvidia.plugins]
        if plugins:
            versions |= tool_versions(("triton",))
        compiler = find_compiler()
        if compiler is not None and any(plugin.embedded for plugin in plugins):
            versions["c++"] = compiler_version(compiler)
        return versions


class TensorRTRTXTarget(_TensorRTTarget):
    """TensorRT-RTX: one engine for a list of compute capabilities; needs no GPU."""

    library = "tensorrt_rtx"

    def inputs(self, request: CompileRequest) -> dict[str, str]:
        found = dict(self.tools(())) | code_of_folder("enginewright.builder.targets.tensorrt")
        if request.attention == "plugin":
            found |= code_of_folder("enginewright.plugins.attention") | tool_versions(("triton",))
            headers, compiler = find_headers(), find_compiler()
            found["headers"] = str(headers and headers.versions())
            found["c++"] = str(compiler and compiler_version(compiler))
        return found

    def coverage(self, request: CompileRequest) -> Coverage:
        wanted = capabilities.chosen(request.attention, request.capabilities)
        portable = request.attention == "native" and request.capabilities is None
        return Coverage(wanted, wanted, later=portable)

    def check_graph(self, graph: ir.Graph, request: CompileRequest) -> None:
        if request.attention == "native":
            native_limits.check(graph, request.limits)

    def configured(self, job: Job, request: CompileRequest, library: Library) -> Job:
        coverage = self.coverage(request)
        if coverage.later:  # only what the library chooses by itself includes later GPUs
            return job
        members = (capabilities.RTX[name] for name in coverage.built_for)
        return replace(job, capabilities=tuple(members))


class TensorRTTarget(_TensorRTTarget):
    """TensorRT: an engine for the GPU of this machine, which it is timed on."""

    library = "tensorrt"

    def check(self, attention: str) -> None:
        super().check(attention)
        gpu_capability()

    def inputs(self, request: CompileRequest) -> None:
        """None: kernels are chosen by timing them on the GPU."""

    def coverage(self, request: CompileRequest) -> Coverage:
        here = (gpu_capability(),)
        if request.tensorrt.hardware_compatibility == "ampere_plus":
            return Coverage(here, ("8.0",), later=True)
        return Coverage(here, here, later=False)

    def configured(self, job: Job, request: CompileRequest, library: Library) -> Job:
        known = timing_cache(library, gpu_capability())
        return replace(
            job,
            version_compatible=request.tensorrt.version_compatible,
            hardware_compatibility=request.tensorrt.hardware_compatibility,
            timing_cache=None if known is None else str(known),
        )

    def check_debug_precision(self, precision: str, attention: str) -> None:
        debug_precision.check(precision, attention)

    def compare_layers(self, model: ir.Model, token_ids: Sequence[int], folder: Path) -> str:
        debug_precision.portable(model)
        graph_file = debug_precision.save(model, folder)
        found = debug_precision.compare_in_tensorrt(
            graph_file, debug_precision.feed(model, token_ids)
        )
        (folder / "layers.txt").write_text(found + "\n", encoding="utf-8")
        return f"{found.partition(chr(10))[0]}; see {folder / 'layers.txt'}"

    def tools(self, engines: tuple[EngineEntry, ...]) -> Mapping[str, str]:
        """The timing cache is one of them: what was measured decides what is built."""
        versions = dict(super().tools(engines))
        known = timing_cache(find_library(self.library), gpu_capability())
        if known is not None and known.exists():
            versions["timing cache"] = f"sha256:{sha256_file(known)}"
        return versions


def _kernels(
    graph: ir.Graph, request: CompileRequest, coverage: Coverage
) -> tuple[PluginEntry | None, tuple[str, ...]]:
    if request.attention == "native":
        return None, ()
    request.progress(f"attention kernels for {', '.join(coverage.built_for)}")
    return kernels.compile_kernels(graph, coverage.built_for, request.folder, _KERNELS)


def _embed(
    job: Job, plugin: PluginEntry | None, request: CompileRequest
) -> tuple[Job, PluginEntry | None]:
    """Both with the plugin in C++, where TensorRT's headers are given."""
    headers = None if plugin is None else find_headers()
    if plugin is None or headers is None:
        return job, plugin
    request.progress("the attention plugin in C++, for the engine to bring along")
    made = compile_plugin(KernelSet.read(request.folder / plugin.kernels), headers)
    return replace(job, plugin_library=str(made)), replace(plugin, embedded=True)


def _job(model: ir.Model, request: CompileRequest, library: Name, scratch: Path) -> Job:
    """Write the graph and its weights, and say what to make of them."""
    graph, weights = scratch / "graph.onnx", scratch / "weights.bin"
    with WeightsFile(weights) as file:
        file.save(model, graph)
    return Job(
        library=library,
        graph=str(graph),
        weights=str(weights),
        engine=str(request.folder / _ENGINE),
        initializers=_initializers(onnx.load(graph, load_external_data=False)),
        profiles=make_profiles(model.graph, request.limits),
        plugin=request.attention == "plugin",
    )


def _initializers(proto: onnx.ModelProto) -> tuple[Initializer, ...]:
    found = []
    for tensor in proto.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            found.append(Initializer(tensor.name, int(place["offset"]), int(place["length"])))
    return tuple(found)


def _fingerprint(job: Job, library: Library, plugin: PluginEntry | None) -> str:
    places = ("graph", "weights", "engine", "plugin_library", "timing_cache")
    told = {name: value for name, value in asdict(job).items() if name not in places}
    inputs = {
        "job": told,
        "graph": sha256_file(Path(job.graph)),
        "weights": sha256_file(Path(job.weights)),
        "version": library.version,
        "plugin": plugin and asdict(plugin),
        "plugin_library": job.plugin_library and sha256_file(Path(job.plugin_library)),
    }
    return f"sha256:{digest(inputs)}"


def _report(outcome: Outcome, job: Job, request: CompileRequest) -> None:
    """What compiling took, to the evidence and to whoever watches."""
    ratio = outcome.anonymous_peak / outcome.engine_bytes
    report = {
        "library": f"{job.library} {outcome.version}",
        "layers": outcome.layers,
        "engine_bytes": outcome.engine_bytes,
        "weights_bytes": Path(job.weights).stat().st_size,
        "seconds": round(outcome.seconds, 3),
        "anonymous_peak_bytes": outcome.anonymous_peak,
        "anonymous_peak_over_engine": round(ratio, 3),
        "mapped_peak_bytes": outcome.mapped_peak,
    }
    write_json(request.folder / EVIDENCE / "compile.json", report)
    request.progress(
        f"{job.library}: engine of {outcome.engine_bytes / 1e6:.0f} MB in {outcome.seconds:.1f} s, "
        f"peak anonymous memory {outcome.anonymous_peak / 1e6:.0f} MB ({ratio:.2f} x the engine), "
        f"mapped files {outcome.mapped_peak / 1e6:.0f} MB"
    )
