"""A recipe for a source alone: what the recipe's file would say, chosen from the source."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from enginewright.builder.recipe import Recipe, SourceSpec, make_recipe
from enginewright.builder.recipe_yaml import apply_override
from enginewright.builder.source import open_source
from enginewright.builder.source.hub import newest_commit
from enginewright.runtime.artifact.model_lookup import DEFAULT_PRECISION
from enginewright.runtime.errors import RecipeError

MOST_CONTEXT = 8192
"""Tokens a row where neither --set nor the model's own positions ask for fewer."""

_REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_FILES = (".gguf", ".safetensors", ".json")


def source_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe for a checkpoint folder, a GGUF file, or a repository of the hub.

    A repository's newest commit is pinned unless ``source.revision=...`` does. Raises RecipeError
    for what is none of these.
    """
    data: dict[str, Any] = {"source": _location(source), "target": "cpu"}
    data["precision"] = DEFAULT_PRECISION
    for override in overrides:
        apply_override(data, override)
    where = " --set ".join((f"--source {source}", *overrides))
    spec = data["source"]
    if isinstance(spec, dict) and "hub" in spec and "revision" not in spec:
        spec["revision"] = newest_commit(str(spec["hub"]))
    stem = re.sub(r"[^a-z0-9._-]+", "-", _stem(source).lower()).lstrip("._-") or "model"
    data.setdefault("name", f"{stem}-{data['target']}-{data['precision']}")
    limits = data.setdefault("limits", {})
    if isinstance(limits, dict) and "max_context" not in limits:
        draft = make_recipe({**data, "limits": {**limits, "max_context": 2}}, where)
        limits["max_context"] = _context(draft.source)
    return make_recipe(data, where)


def _location(source: str) -> Mapping[str, str]:
    path = Path(source).expanduser()
    if path.is_file():
        return {"gguf": str(path.absolute())}
    if path.is_dir():
        return {"path": str(path.absolute())}
    if "/" not in source and source.lower().endswith(_FILES):
        raise RecipeError(f"--source {source}: no such file")
    if _REPOSITORY.fullmatch(source):
        return {"hub": source}
    raise RecipeError(
        f"--source {source}: no such folder or file, and no repository of the hub, whose form is "
        f"owner/name"
    )


def _stem(source: str) -> str:
    path = Path(source).expanduser()
    return path.stem if path.is_file() else path.resolve().name


def _context(spec: SourceSpec) -> int:
    positions = open_source(spec).positions
    return MOST_CONTEXT if positions is None else min(positions, MOST_CONTEXT)
