"""What a build may reuse of an earlier one, keyed by the digest of everything it depends on.

Entries are files below the user's cache folder; they are written under another name and renamed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from enginewright.builder.disk import writing_to
from enginewright.plugins.attention import contract
from enginewright.runtime.artifact.integrity import cache_folder
from enginewright.runtime.errors import BuildError

TOOLS = (
    "enginewright",
    "gguf",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "tokenizers",
    "torch",
    "transformers",
)
"""Distributions whose versions a build depends on."""

_REMEDY = "free some space, or set XDG_CACHE_HOME to a folder where there is more"


def tool_versions(names: tuple[str, ...] = TOOLS) -> dict[str, str]:
    """The installed version of each distribution."""
    return {name: metadata.version(name) for name in names}


def digest(inputs: Mapping[str, Any]) -> str:
    """SHA-256 of plain data, in hex, independent of the order of keys."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def code_digest() -> str:
    """SHA-256 over the builder's and the plugins' own files, so that what changed runs again."""
    total = hashlib.sha256()
    for root in (Path(__file__).parent, Path(contract.__file__).parents[1]):
        for path in sorted(root.rglob("*")):
            if path.suffix in (".py", ".txt", ".h", ".cpp"):
                total.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return total.hexdigest()


def cached_file(stage: str, key: str, name: str, make: Callable[[Path], None]) -> Path:
    """The file of a stage's entry, made by ``make(path)`` if it is not there yet.

    Raises BuildError where the cache folder is full or cannot be written.
    """
    root = cache_folder()
    if root is None:
        raise BuildError(
            "no usable cache folder: set XDG_CACHE_HOME to a folder that you own and nobody else "
            "may write to"
        )
    folder = root / stage / key
    path = folder / name
    with writing_to(root, "the cache folder ", _REMEDY):
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = Path(scratch) / name
                make(made)
                os.replace(made, path)
    return path
