"""What is installed here: the packages that targets need, and the plugins of this enginewright."""

from __future__ import annotations

import importlib.metadata
import re

from enginewright.runtime.doctor.facts import Installed
from enginewright.runtime.doctor.kernels import installed_plugins
from enginewright.runtime.doctor.requirements import known_distributions

_LEAST = re.compile(r"(?P<name>[\w.-]+)>=(?P<version>[\d.]+)")


def read_installed() -> Installed:
    """Versions by distribution; what is not installed is left out."""
    versions = {name: _version(name) for name in known_distributions()}
    return Installed(
        {name: version for name, version in versions.items() if version is not None},
        _least(),
        installed_plugins(),
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _least() -> dict[str, str]:
    """The least versions that this distribution's extras ask for."""
    try:
        stated = importlib.metadata.requires("enginewright") or []
    except importlib.metadata.PackageNotFoundError:  # it runs from a folder
        return {}
    found = [match for text in stated if (match := _LEAST.match(text))]
    return {match["name"]: match["version"] for match in found}
