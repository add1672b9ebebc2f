"""What an engine's entry says of a graph and of the engine's files, the same for every target."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from enginewright.runtime.artifact.artifact import sha256_file
from enginewright.runtime.artifact.manifest import EngineEntry, TensorEntry


def tensor_entries(graph: ir.Graph) -> tuple[TensorEntry, ...]:
    """The graph's inputs, then its outputs."""
    return (*_entries(graph.inputs, "input"), *_entries(graph.outputs, "output"))


def vocab_size(graph: ir.Graph) -> int:
    """The width of the logits, which are the first output."""
    size = (graph.outputs[0].shape or [None])[-1]
    assert isinstance(size, int)
    return size


def with_fingerprints(entries: tuple[EngineEntry, ...], folder: Path) -> tuple[EngineEntry, ...]:
    """The entries, each with the digest of its files, which are below the folder."""
    names = {name for entry in entries for name in entry.files}
    digests = {name: sha256_file(folder / name) for name in names}
    return tuple(replace(entry, fingerprint=_fingerprint(entry, digests)) for entry in entries)


def _entries(
    values: Sequence[ir.Value], direction: Literal["input", "output"]
) -> Iterator[TensorEntry]:
    for value in values:
        assert value.shape is not None
        assert value.dtype is not None
        assert value.name is not None
        shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
        yield TensorEntry(value.name, direction, value.dtype.numpy().name, shape)


def _fingerprint(entry: EngineEntry, digests: Mapping[str, str]) -> str:
    text = "".join(digests[name] for name in entry.files)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
