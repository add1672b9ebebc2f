"""What a stage depends on, as flat names and values: tools, code, config; and how two sets differ.

Values are short texts, numbers or digests, so that a difference can be told to people.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

Inputs = Mapping[str, str | int | float | bool | None]

TOOLS = (
    "enginewright",
    "gguf",
    "ml_dtypes",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "protobuf",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
"""Distributions whose versions a build depends on."""

_OURS = ("enginewright.builder", "enginewright.plugins", "enginewright.runtime")
_NEUTRAL = tuple(f"enginewright.builder.{name}" for name in ("cache", "disk", "memory", "publish"))
"""Modules that say where things go, not what they are."""
_SHOWN = 4
_LONGEST = 40


def tool_versions(names: tuple[str, ...] = TOOLS) -> dict[str, str]:
    """The installed version of each distribution."""
    return {name: metadata.version(name) for name in names}


def tools(*names: str) -> dict[str, str]:
    """Versions as inputs of a stage, and that of Python."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"tool python": python} | {f"tool {n}": v for n, v in tool_versions(names).items()}


def flat(prefix: str, data: Any) -> dict[str, Any]:
    """Nested plain data under dotted names."""
    if isinstance(data, Mapping):
        items = ((str(name), value) for name, value in data.items())
    elif isinstance(data, list | tuple):
        items = ((str(at), value) for at, value in enumerate(data))
    else:
        return {prefix: data if data is None or isinstance(data, int | float) else str(data)}
    found: dict[str, Any] = {}
    for name, value in items:
        found |= flat(f"{prefix}.{name}", value)
    return found


def code_of(*modules: str) -> dict[str, str]:
    """Digests of the modules' files and of all of ours that they import, by path."""
    files: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = None if name.startswith(_NEUTRAL) else _file(name)
        if path is None:
            continue
        inner = "/__init__" if path.name == "__init__.py" else ""
        label = f"code {name.removeprefix('enginewright.').replace('.', '/')}{inner}.py"
        if label in files:
            continue
        text = path.read_bytes()
        files[label] = short_digest(text)
        waiting += _imports(str(path), text)
    return files


def code_of_folder(package: str) -> dict[str, str]:
    """One digest of all that lies in a package: for what imports modules by names in tables."""
    return {f"code {package.removeprefix('enginewright.').replace('.', '/')}/": _folder(package)}


def short_digest(content: bytes) -> str:
    """The first half of a SHA-256, in hex."""
    return hashlib.sha256(content).hexdigest()[:32]


def difference(old: Inputs, new: Inputs) -> str:
    """What changed from one set of inputs to another, for people."""
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    told = [_change(name, old, new) for name in names[:_SHOWN]]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(told)}{more}"


def distance(old: Inputs, new: Inputs) -> int:
    """How many inputs differ."""
    return sum(old.get(name) != new.get(name) for name in old.keys() | new.keys())


def _change(name: str, old: Inputs, new: Inputs) -> str:
    if name not in old:
        return f"{name} is new"
    if name not in new:
        return f"{name} is gone"
    before, after = str(old[name]), str(new[name])
    hidden = any(len(text) > _LONGEST or _is_digest(text) for text in (before, after))
    return name if hidden else f"{name} ({before} -> {after})"


def _is_digest(text: str) -> bool:
    return len(text) >= 32 and set(text.removeprefix("sha256:")) <= set("0123456789abcdef")


@functools.cache
def _file(module: str) -> Path | None:
    """The source file of one of our modules; None for anything else."""
    if not module.startswith(_OURS):
        return None
    try:
        found = importlib.util.find_spec(module)
    except (ModuleNotFoundError, AttributeError):  # a name inside a module
        return None
    return Path(found.origin) if found is not None and found.origin else None


@functools.cache
def _imports(file: str, text: bytes) -> tuple[str, ...]:
    return tuple(_imported(ast.parse(text, file)))


def _imported(tree: ast.AST) -> Iterator[str]:
    """Names that may be modules; what is imported for type checkers alone is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from _imported(node)


@functools.cache
def _folder(package: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    total = hashlib.sha256()
    for root in map(Path, spec.submodule_search_locations):
        for path in sorted(root.rglob("*")):
            if path.suffix in (".py", ".txt", ".h", ".cpp"):
                total.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return total.hexdigest()[:32]
