"""A YAML file with the names of the command's flags; ``models`` lists several artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginewright.runtime.errors import EnginewrightError


def read_config(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The models that the file names, and its other settings; dashes in names are underscores."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise EnginewrightError(f"{path}: the config cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EnginewrightError(f"{path}: the config is not YAML: {error}") from error
    settings = _settings(data or {}, str(path))
    models, model = settings.pop("models", None), settings.pop("model", None)
    if models is not None and model is not None:
        raise EnginewrightError(f"{path}: model and models are both given: give one")
    if models is None:
        return ([{"model": model}] if model is not None else []), settings
    if not isinstance(models, list):
        raise EnginewrightError(f"{path}: models must be a list of objects with model")
    return [_settings(each, f"{path}: models") for each in models], settings


def _settings(data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping) or not all(isinstance(name, str) for name in data):
        raise EnginewrightError(f"{where} must be an object of names and values, not {data!r:.80}")
    return {name.replace("-", "_"): value for name, value in data.items()}
