"""A recipe's text -> plain data: YAML that refuses repeated keys, and --set overrides."""

from __future__ import annotations

from typing import Any

import yaml

from enginewright.cli.strict_yaml import StrictLoader
from enginewright.runtime.errors import RecipeError


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """A recipe's mapping; raises RecipeError with the line for anything else."""
    try:
        data = yaml.load(text, Loader=StrictLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not YAML: {error}") from error
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise RecipeError(f"{where}: a recipe is a mapping of keys to values, {found} found")
    return data


def parse_override(override: str) -> tuple[list[str], Any]:
    """``a.b.c=value`` as keys and a value, which is read as YAML; an empty one is null."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set {override}: the form is path=value, as in precision=int8")
    try:
        return keys, yaml.safe_load(text)
    except yaml.YAMLError as error:
        said = getattr(error, "problem", None) or error
        raise RecipeError(f"--set {override}: the value is not YAML: {said}") from error


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set a value in nested mappings."""
    keys, value = parse_override(override)
    node = data
    for depth, key in enumerate(keys[:-1]):
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            inner = ".".join(keys[: depth + 1])
            raise RecipeError(f"--set {override}: {inner} is a value, it has no keys within")
    node[keys[-1]] = value
