"""Small JSON files of a checkpoint: an object, or a SourceError that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from enginewright.runtime.errors import SourceError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error})") from error
    except ValueError as error:
        raise SourceError(f"{path}: damaged or not JSON ({error})") from error
    if not isinstance(data, dict):
        raise SourceError(f"{path}: an object is wanted, {type(data).__name__} found")
    return data
