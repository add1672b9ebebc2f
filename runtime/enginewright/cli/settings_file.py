"""Files that a user writes, YAML or JSON, as plain data; JSON needs no package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from enginewright.cli.extras import require
from enginewright.runtime.errors import SettingsError

LARGEST = 1 << 22


def read_settings(path: Path) -> dict[str, Any]:
    """The file's mapping.

    Raises SettingsError for what is none, MissingDependencyError where YAML cannot be read.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read ({error})") from error
    if len(text) > LARGEST:
        raise SettingsError(f"{path}: is larger than {LARGEST} characters, so it is no such file")
    data = _json(path, text) if path.suffix == ".json" else _yaml(path, text)
    if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
        raise SettingsError(f"{path}: must be a mapping of names to values")
    return data


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: not JSON ({error})") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of JSON, of which no key may be given twice."""
    found = dict[str, Any]()
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name!r} is given twice")
        found[name] = value
    return found


def _yaml(path: Path, text: str) -> Any:
    require("sign", "yaml")
    import yaml

    from enginewright.cli.strict_yaml import StrictLoader

    try:
        return yaml.load(text, Loader=StrictLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise SettingsError(f"{path}: not YAML ({error})") from error
