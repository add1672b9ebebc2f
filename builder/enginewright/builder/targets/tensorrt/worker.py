"""The compiling process: ``python -m ...worker JOB OUTCOME``; a line of progress a time on stdout.

It is a process of its own because the library may end it, and so that its memory can be told from
the build's. What the library prints goes to stderr.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from enginewright.builder.child_process import end_with_parent
from enginewright.builder.memory import StageMeter
from enginewright.builder.targets.tensorrt.job import Job, Outcome, Tensor

Tell = Callable[[str], None]
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
_KEPT_LINES = 20
_TOLD_DEPTH = 3
"""Phases lie within phases; below this there are hundreds."""
_TRIMMED_DEPTH = 4


class CompileError(Exception):
    """The library refused; its lines say why."""


def main(job_file: str, outcome_file: str) -> None:
    """Do the job and write the outcome, in which errors of the library are told."""
    tell = _progress_channel()
    job = Job.read(Path(job_file))
    lines: list[str] = []
    with StageMeter() as meter:
        try:
            outcome = compile_engine(job, lines, tell)
        except CompileError as error:
            outcome = Outcome(errors=(str(error), *lines[-_KEPT_LINES:]))
    replace(
        outcome,
        seconds=meter.seconds,
        anonymous_peak=meter.anonymous_peak,
        mapped_peak=meter.mapped_peak,
    ).write(Path(outcome_file))


def compile_engine(job: Job, lines: list[str], tell: Tell) -> Outcome:
    """Build the engine's file; what the library complains of is added to ``lines``."""
    trt = importlib.import_module(job.library)
    logger = _logger(trt, lines)
    if job.plugin:
        _register_plugin(trt, job)
    builder = trt.Builder(logger)
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, logger)
    weights = _parse(parser, job)
    config = _config(trt, builder, job)
    config.progress_monitor = _monitor(trt, tell)
    tell(f"{network.num_layers} layers read")
    with Path(job.engine).open("wb") as file:
        built = builder.build_serialized_network_to_stream(network, config, _writer(trt, file))
        file.flush()
        os.fsync(file.fileno())
    if not built:
        raise CompileError("the engine cannot be built")
    _keep_timing_cache(config, job)
    tensors = _tensors(network)
    size = Path(job.engine).stat().st_size
    layers = network.num_layers
    del parser, weights
    return Outcome(trt.__version__, tensors, layers, size)


def _register_plugin(trt: Any, job: Job) -> None:
    """Make the plugin known, the one in C++ where there is one."""
    if job.plugin_library is None:
        from enginewright.plugins.attention import tensorrt as plugin

        plugin.register(trt)
    elif trt.get_plugin_registry().load_library(job.plugin_library) is None:
        raise CompileError(f"the plugin cannot be loaded: {job.plugin_library}")


def _progress_channel() -> Tell:
    """Keep stdout for progress alone: what the library writes there goes to stderr from now on."""
    channel = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def tell(line: str) -> None:
        channel.write(line.replace("\n", " ") + "\n")

    return tell


def _logger(trt: Any, lines: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                lines.append(message)
            if severity <= trt.ILogger.WARNING:
                print(message, file=sys.stderr, flush=True)

    return Logger()


def _monitor(trt: Any, tell: Tell) -> Any:
    trim = _trim()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.depths: dict[str | None, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.depths[phase] = self.depths.get(parent, 0) + 1
            if self.depths[phase] <= _TOLD_DEPTH:
                tell(f"{phase} ({steps} steps)")

        def phase_finish(self, phase: str) -> None:
            """What a phase has freed goes back to the system: else the heap keeps a third more."""
            if self.depths.get(phase, 0) <= _TRIMMED_DEPTH:
                trim()

        def step_complete(self, phase: str, step: int) -> bool:
            return True

    return Monitor()


def _trim() -> Callable[[], None]:
    """glibc's malloc_trim; nothing where there is none."""
    found = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return (lambda: None) if found is None else lambda: found(0)


def _parse(parser: Any, job: Job) -> NDArray[np.uint8]:
    """Read the graph over the mapped weights, which must outlive the build."""
    weights = np.memmap(job.weights, np.uint8, "r") if job.initializers else np.zeros(0, np.uint8)
    read = parser.load_model_proto(Path(job.graph).read_bytes())
    for each in job.initializers:
        if not read:
            break
        read = parser.load_initializer(each.name, weights.ctypes.data + each.offset, each.length)
    if not (read and parser.parse_model_proto()):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        said = "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in found)
        raise CompileError(f"the graph cannot be read: {said}")
    return weights


def _config(trt: Any, builder: Any, job: Job) -> Any:
    config = builder.create_builder_config()
    if job.capabilities:
        config.num_compute_capabilities = len(job.capabilities)
        for index, member in enumerate(job.capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, member), index)
    if job.plugin:
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    if job.plugin_library is not None:
        config.plugins_to_serialize = [job.plugin_library]
    own_memory = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if own_memory is not None:  # what the library allocates itself cannot be captured in a graph
        config.set_flag(own_memory)
    for wanted in job.profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in wanted.shapes.items():
            profile.set_shape(name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise CompileError(f"the optimization profile {wanted.name} is refused")
    if job.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if job.hardware_compatibility != "none":
        level = job.hardware_compatibility.upper()
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if job.timing_cache is not None:
        known = Path(job.timing_cache)
        cache = config.create_timing_cache(known.read_bytes() if known.exists() else b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):  # another GPU's
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return config


def _keep_timing_cache(config: Any, job: Job) -> None:
    if job.timing_cache is None:
        return
    path = Path(job.timing_cache)
    written = path.with_suffix(f".{os.getpid()}")
    written.write_bytes(config.get_timing_cache().serialize())
    written.replace(path)


def _writer(trt: Any, file: BinaryIO) -> Any:
    """Takes the engine piece by piece, so that it is never in memory as a whole once more."""

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            return file.write(data)

    return Writer()


def _tensors(network: Any) -> tuple[Tensor, ...]:
    inputs = [("input", network.get_input(i)) for i in range(network.num_inputs)]
    outputs = [("output", network.get_output(i)) for i in range(network.num_outputs)]
    return tuple(
        Tensor(each.name, direction, _DTYPES[each.dtype.name], _shape(each))
        for direction, each in [*inputs, *outputs]
    )


def _shape(tensor: Any) -> tuple[int | str, ...]:
    """A dimension that is not fixed has the name that the graph gives it, if any."""
    named = (tensor.get_dimension_name(axis) for axis in range(len(tensor.shape)))
    return tuple(
        size if size >= 0 else name or "?" for size, name in zip(tensor.shape, named, strict=True)
    )


if __name__ == "__main__":
    end_with_parent(Path(sys.argv[1]).parent)
    main(*sys.argv[1:])
