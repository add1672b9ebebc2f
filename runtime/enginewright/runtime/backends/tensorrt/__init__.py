"""Targets tensorrt_rtx and tensorrt: an engine on an NVIDIA GPU, its cache on the device.

One module for both libraries, whose Python interfaces are nearly the same. docs/nvidia.md tells
how a step runs.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.backends.tensorrt.engine import OpenEngine, TensorRTEngine
from enginewright.runtime.backends.tensorrt.jit_cache import JitKey
from enginewright.runtime.backends.tensorrt.library import Messages, import_library, load_engine
from enginewright.runtime.cuda.driver import Device, DeviceFacts, release_quietly
from enginewright.runtime.doctor.load import check_device
from enginewright.runtime.engine import Engine

_REGISTRY = threading.Lock()
"""The library's registry of plugins is the process's: one engine at a time takes its kernels."""


def open_engine(
    artifact: Artifact, entry: EngineEntry, threads: int | None, *, in_turns: bool
) -> Engine:
    """Load the engine onto the first visible GPU. ``threads``, ``in_turns`` mean nothing here.

    What can be told without the library is checked before it is loaded: driver, GPU, versions,
    plugin, memory. Raises DeviceError, whose code says which, and MissingDependencyError.
    """
    assert entry.nvidia is not None, "the manifest of such an engine has it"
    with ExitStack() as owned:
        device = Device()
        owned.callback(release_quietly, device.close)
        facts = device.facts()
        check_device(artifact, entry, facts)
        trt = import_library(entry.nvidia.library)
        messages = Messages(trt)
        with _REGISTRY:
            _register_plugins(artifact, entry, facts, trt, owned)
            path, allowed = artifact.file(entry.model), entry.nvidia.host_code
            runtime, engine = load_engine(trt, path, messages, host_code=allowed)
        loaded = OpenEngine(
            trt=trt,
            runtime=runtime,
            engine=engine,
            messages=messages,
            device=device,
            jit=_jit_key(artifact, entry, facts, trt),
            owned=owned.pop_all(),
        )
    invariant = artifact.manifest.chunk_invariant(entry.plan)
    return TensorRTEngine(loaded, entry, chunk_invariant=invariant)


def _register_plugins(
    artifact: Artifact, entry: EngineEntry, facts: DeviceFacts, trt: Any, owned: ExitStack
) -> None:
    """Make the plugin known with the artifact's kernels, for those that load an engine now."""
    assert entry.nvidia is not None
    wanted = [plugin for plugin in entry.nvidia.plugins if not plugin.embedded]
    if not wanted:
        return
    from enginewright.plugins.attention import tensorrt as plugin
    from enginewright.plugins.attention.cuda.kernel_set import KernelSet
    from enginewright.runtime.cuda.modules import KernelModules

    [used] = wanted  # there is one plugin, and doctor has refused any other
    kernels = KernelModules(KernelSet.read(artifact.file(used.kernels)), facts.capability)
    owned.callback(kernels.close)
    plugin.register(trt, kernels)


def _jit_key(artifact: Artifact, entry: EngineEntry, facts: DeviceFacts, trt: Any) -> JitKey:
    return JitKey(
        engine=artifact.manifest.files[entry.model].sha256,
        device=facts.name,
        capability=facts.capability,
        cuda=facts.cuda,
        library_version=trt.__version__,
    )
