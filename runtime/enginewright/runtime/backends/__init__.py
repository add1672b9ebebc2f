"""Which backend runs which target: one row a target, its module imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Protocol, cast

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.engine import Engine
from enginewright.runtime.errors import MissingDependencyError, TargetError


@dataclass(frozen=True)
class Backend:
    """A module with ``open_engine``, the package that it needs, and the extra that brings it."""

    module: str
    package: str
    extra: str


BACKENDS: Mapping[str, Backend] = {
    "cpu": Backend("enginewright.runtime.backends.onnxruntime", "onnxruntime", "cpu"),
    "cuda": Backend("enginewright.runtime.backends.onnxruntime_cuda", "onnxruntime", "cuda"),
    "tensorrt_rtx": Backend("enginewright.runtime.backends.tensorrt", "tensorrt_rtx", "rtx"),
    "tensorrt": Backend("enginewright.runtime.backends.tensorrt", "tensorrt", "tensorrt"),
}


ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


class BackendModule(Protocol):
    """What a backend's module offers."""

    def open_engine(
        self, artifact: Artifact, entry: EngineEntry, threads: int | None, *, in_turns: bool
    ) -> Engine:
        """Load the engine; ``threads`` None means as many as there are cores to run on.

        ``in_turns``: another one steps after each of its steps, on the same cores.
        """


def open_engine(
    artifact: Artifact, entry: EngineEntry, threads: int | None = None, *, in_turns: bool = False
) -> Engine:
    """Load the engine ``entry`` of the artifact with the backend of its target."""
    return load_backend(entry.target).open_engine(artifact, entry, threads, in_turns=in_turns)


def load_backend(target: str) -> BackendModule:
    """Import the backend of a target.

    Raises TargetError for a target without a backend, MissingDependencyError for an extra that
    is not installed.
    """
    backend = BACKENDS.get(target)
    if backend is None:
        known = ", ".join(BACKENDS)
        raise TargetError(
            f"target {target!r}: this runtime has no backend for it; it runs: {known}. "
            f"Build the model for one of those, or install a newer enginewright"
        )
    try:
        return cast(BackendModule, importlib.import_module(backend.module))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != backend.package:
            raise
        raise MissingDependencyError(
            f"target {target!r} needs {backend.package}: "
            f"pip install 'enginewright[{backend.extra}]'"
        ) from error
    except ImportError as error:
        raise MissingDependencyError(
            f"target {target!r} needs {backend.package}, which is installed but cannot be "
            f"imported ({error}). {_repair(backend)}"
        ) from error


def _repair(backend: Backend) -> str:
    """The commands that bring a broken installation of the package in order."""
    return repair(backend.extra, onnx_runtimes())


def repair(extra: str, installed: Set[str]) -> str:
    """The commands that put what the extra brings in the place of the ``installed`` ONNX Runtimes.

    They are two distributions of one package: the files of the later one replace the other's.
    """
    install = f"pip install 'enginewright[{extra}]'"
    if len(installed) == 2:
        return (
            f"onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            f"pip uninstall onnxruntime onnxruntime-gpu, then {install}"
        )
    if extra == "cuda" and installed == {"onnxruntime"}:
        return f"pip uninstall onnxruntime, then {install}"
    return f"pip install --force-reinstall 'enginewright[{extra}]'"


def onnx_runtimes() -> frozenset[str]:
    """The distributions of ONNX Runtime that are installed."""
    return frozenset(name for name in ONNX_RUNTIMES if _is_installed(name))


def _is_installed(distribution: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version  # not needed by every start

    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
