"""Targets by name: each turns the exported graph into an engine in a folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import onnx_ir as ir

from enginewright.builder.export import CacheShape
from enginewright.runtime.artifact.manifest import EngineEntry, LimitsEntry
from enginewright.runtime.errors import RecipeError

_TARGETS = {"cpu": ("enginewright.builder.targets.cpu", "CpuTarget")}


@dataclass(frozen=True)
class CompileRequest:
    """What a target is asked for. ``folder`` is the artifact's; the engine goes to its engine/."""

    folder: Path
    precision: str
    limits: LimitsEntry
    caches: tuple[CacheShape, ...]


class Target(ABC):
    """One kind of engine."""

    @abstractmethod
    def compile(self, model: ir.Model, request: CompileRequest) -> tuple[EngineEntry, ...]:
        """Lower the graph, write the engine's files, and describe them: one or more plans.

        The runtime takes the first plan that can run where it is.

        The graph is changed in place; weights are read while they are written.
        """


def target_of(name: str) -> Target:
    """The target of that name; raises RecipeError with the names that exist."""
    if name not in _TARGETS:
        raise RecipeError(f"target: {name!r} is unknown; legal: {', '.join(sorted(_TARGETS))}")
    module, attribute = _TARGETS[name]
    made: Target = getattr(import_module(module), attribute)()
    return made
