"""Optional packages: a missing one is answered by the pip command that brings it."""

from __future__ import annotations

import importlib.util

from enginewright.runtime.errors import MissingDependencyError


def require(extra: str, *packages: str) -> None:
    """Raise MissingDependencyError unless all ``packages`` of ``extra`` are installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingDependencyError(
            f"needs {', '.join(missing)}: pip install 'enginewright[{extra}]'"
        )
