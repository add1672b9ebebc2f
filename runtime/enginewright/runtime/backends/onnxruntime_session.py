"""What both ONNX Runtime backends share: the library, its options and errors, a model's interface.

Importing this module imports onnxruntime.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the library is loaded
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from enginewright.runtime.artifact.manifest import KVEntry
from enginewright.runtime.cores import available_cores
from enginewright.runtime.errors import ArtifactError, EnginewrightError

__all__ = [
    "GRAPH_OPTIMIZATION",
    "LOAD_ERRORS",
    "SMALL_INPUTS",
    "cache_names",
    "check_interface",
    "ort",
    "session_options",
]

GRAPH_OPTIMIZATION = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
"""The builder has fused the graph already; higher levels cost load time and gain nothing."""

SMALL_INPUTS = ("input_ids", "past_lengths", "new_lengths", "logits_index")
"""Of the step contract, what every model takes."""

LOAD_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotFound,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
)


def session_options(threads: int | None, *, in_turns: bool = False) -> Any:
    """Options for one thread pool of ``threads``; None: as many as there are cores to run on.

    Threads spin for a while after a step, in case another follows at once. ``in_turns``: they do
    not, for another engine's step follows, which would be left with half of the cores' time.
    """
    if threads is not None and threads < 1:
        raise EnginewrightError(f"threads={threads}: at least 1, or None for all available cores")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = GRAPH_OPTIMIZATION
    if in_turns:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # errors are raised; a line on stderr besides is noise
    return options


def cache_names(kv: KVEntry) -> list[str]:
    """The cache's tensors, in the order of the layers."""
    return [f"{kind}_cache.{i}" for i in range(kv.layers) for kind in "kv"]


def check_interface(
    session: Any,
    kv: KVEntry,
    model: Path,
    inputs: Iterable[str],
    outputs: Iterable[str] = ("logits",),
) -> None:
    """Raise ArtifactError unless the model takes and gives just these, and its caches."""
    caches = cache_names(kv)
    expected = {*inputs, *caches, *outputs, *(f"{name}.out" for name in caches)}
    found = {node.name for node in (*session.get_inputs(), *session.get_outputs())}
    if expected != found:
        differing = ", ".join(sorted(expected ^ found)[:8])
        raise ArtifactError(
            f"{model}: its inputs and outputs are not those of the manifest (differing: "
            f"{differing}); build the artifact again"
        )
