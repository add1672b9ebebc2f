"""Targets by name: each turns the exported graph into an engine in a folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from enginewright.runtime.artifact.manifest import EngineEntry, LimitsEntry
from enginewright.runtime.errors import RecipeError

if TYPE_CHECKING:  # importing them takes seconds, and the worker of TensorRT needs neither
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from enginewright.builder.export import CacheShape

_TARGETS = {
    "cpu": ("enginewright.builder.targets.cpu", "CpuTarget"),
    "cuda": ("enginewright.builder.targets.cuda", "CudaTarget"),
    "tensorrt_rtx": ("enginewright.builder.targets.tensorrt.target", "TensorRTRTXTarget"),
    "tensorrt": ("enginewright.builder.targets.tensorrt.target", "TensorRTTarget"),
}

_NOT_COMPARED = (
    "--debug-precision compares the layers of a TensorRT engine on its GPU; it is for target: "
    "tensorrt"
)


def _silent(line: str) -> None:
    """Progress that nobody asked for."""


@dataclass(frozen=True)
class TensorRTOptions:
    """What the recipe's ``tensorrt`` says; see recipe.TensorRTSpec."""

    version_compatible: bool = False
    hardware_compatibility: str = "none"


@dataclass(frozen=True)
class CompileRequest:
    """What a target is asked for. ``folder`` is the artifact's; the engine goes to its engine/.

    ``kv_dtype`` and ``block_size``: of a paged cache; ``kv_scales`` as calibration.py has them,
    with a quantized one. For the NVIDIA targets: ``attention``, the compute ``capabilities``
    (None: the target's own choice) and ``tensorrt``; ``top_logits``: how many of
    each row come to the host, 0: the whole row. Lines for people go to ``progress``.
    """

    folder: Path
    precision: str
    limits: LimitsEntry
    caches: tuple[CacheShape, ...]
    attention: Literal["native", "plugin"] = "native"
    capabilities: tuple[str, ...] | None = None
    kv_dtype: Literal["auto", "float32", "float16", "int8", "fp8"] = "auto"
    block_size: int = 32
    kv_scales: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    top_logits: int = 0
    tensorrt: TensorRTOptions = TensorRTOptions()
    progress: Callable[[str], None] = _silent


class Target(ABC):
    """One kind of engine."""

    interpreted: ClassVar[bool] = False
    """Whether conformance interprets the graph that ``compile`` has left in the model, because no
    device may be here to run the engine."""

    def check(self, attention: str) -> None:  # noqa: B027  (most targets ask for nothing)
        """Raise MissingDependencyError where something is missing that compiling needs.

        ``attention``: native or plugin, as in CompileRequest.
        """

    def prepare(self) -> None:  # noqa: B027
        """Make what is made once a machine and needs no model."""

    def inputs(self, request: CompileRequest) -> dict[str, str] | None:
        """What ``compile`` depends on beside graph, weights, request and its own code, by name.

        None: engines differ from time to time, so they are compiled in every build.
        """
        return {}

    def lower(self, model: ir.Model, request: CompileRequest) -> None:
        """Change the graph as ``compile`` does, and write nothing; of interpreted targets."""
        raise NotImplementedError(type(self).__name__)

    @abstractmethod
    def compile(self, model: ir.Model, request: CompileRequest) -> tuple[EngineEntry, ...]:
        """Lower the graph, write the engine's files, and describe them: one or more plans.

        The runtime takes the first plan that can run where it is.

        The graph is changed in place, to the one that was compiled; weights are read while they
        are written.
        """

    def check_debug_precision(self, precision: str, attention: str) -> None:
        """Raise BuildError where ``compare_layers`` cannot help with such an engine."""
        raise RecipeError(_NOT_COMPARED)

    def compare_layers(self, model: ir.Model, token_ids: Sequence[int], folder: Path) -> str:
        """Where the compiled graph's tensors on the device first differ from ONNX Runtime's.

        ``model`` is what ``compile`` left, and is changed; what is run is kept in ``folder``.
        """
        raise RecipeError(_NOT_COMPARED)

    @abstractmethod
    def tools(self, engines: tuple[EngineEntry, ...]) -> Mapping[str, str]:
        """The versions of what compiled these engines, for the manifest and the lock."""


def target_of(name: str) -> Target:
    """The target of that name; raises RecipeError with the names that exist."""
    if name not in _TARGETS:
        raise RecipeError(f"target: {name!r} is unknown; legal: {', '.join(sorted(_TARGETS))}")
    module, attribute = _TARGETS[name]
    made: Target = getattr(import_module(module), attribute)()
    return made
