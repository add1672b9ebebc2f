"""What lowering did to a graph, for the report: operations around each pass, errors of rounding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from enginewright.builder.publish import EVIDENCE, write_json

FILE = "lowering.json"


class Recorder:
    """Runs passes over a graph, and notes what each of them left."""

    def __init__(self, model: ir.Model) -> None:
        self._passes = [{"pass": "export", "plan": None, "operations": _operations(model)}]
        self._matrices: dict[str, dict[str, Any]] = {}

    def run(
        self,
        change: Callable[..., object],
        model: ir.Model,
        *arguments: Any,
        plan: str | None = None,
        **options: Any,
    ) -> None:
        """Apply the pass; ``plan``: the one whose copy of the graph it is, None: of all."""
        change(model, *arguments, **options)
        name, found = change.__name__, _operations(model)
        self._passes.append({"pass": name, "plan": plan, "operations": found})

    def stored(self, name: str, bits: int, error: float | None) -> None:
        """A matrix in so many bits; ``error``: of its values, relative, in the root mean square;
        None: the source's own blocks, unchanged."""
        self._matrices[name] = {"bits": bits, "error": error}

    def write(self, folder: Path) -> None:
        """Into the evidence of the artifact's folder."""
        found = {"passes": self._passes, "matrices": self._matrices}
        write_json(folder / EVIDENCE / FILE, found)


def _operations(model: ir.Model) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph))
