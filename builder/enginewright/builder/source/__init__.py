"""Where weights come from: one file a kind, a table of kinds, and Source, what all of them give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from enginewright.builder.recipe import SourceSpec
from enginewright.builder.source.base import Source
from enginewright.builder.source.checkpoint import open_checkpoint
from enginewright.builder.source.gguf import open_gguf_source
from enginewright.builder.source.gguf_file import is_gguf
from enginewright.builder.source.hub import open_hub
from enginewright.builder.source.package import open_package
from enginewright.runtime.errors import SourceError

__all__ = ["Source", "open_source"]


def open_source(spec: SourceSpec) -> Source:
    """Open what a recipe names; weights are read only when they are asked for."""
    return _OPEN[spec.kind](spec)


def _open_path(spec: SourceSpec) -> Source:
    path = _location(spec.path)
    if path.is_file():
        if not is_gguf(path):
            raise SourceError(f"{path}: neither a checkpoint folder nor a GGUF file")
        return open_gguf_source(path)
    return open_checkpoint(path)


def _open_gguf(spec: SourceSpec) -> Source:
    return open_gguf_source(_location(spec.gguf))


def _location(path: Path | None) -> Path:
    assert path is not None, "the table is keyed by the field that is set"
    return path.absolute()


_OPEN: Mapping[str, Callable[[SourceSpec], Source]] = {
    "path": _open_path,
    "gguf": _open_gguf,
    "package": open_package,
    "hub": open_hub,
}
