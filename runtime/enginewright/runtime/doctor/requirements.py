"""Which packages a plan needs, and how versions compare."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from enginewright.runtime.artifact.manifest import EngineEntry, Manifest
from enginewright.runtime.doctor.facts import Installed


@dataclass(frozen=True)
class Requirement:
    """The distributions any of which brings a library; ``extra`` brings the first of them.

    ``same_version``: it only runs what was built by its own version.
    """

    any_of: tuple[str, ...]
    extra: str
    same_version: bool = False

    def installed(self, installed: Installed) -> str | None:
        """The one of them that is installed."""
        return next((name for name in self.any_of if name in installed.versions), None)


_ONNXRUNTIME = Requirement(("onnxruntime", "onnxruntime-gpu"), "cpu")
_LIBRARIES: Mapping[str, Requirement] = {
    "tensorrt_rtx": Requirement(
        ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"), "rtx", same_version=True
    ),
    "tensorrt": Requirement(
        ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"), "tensorrt", same_version=True
    ),
    "onnxruntime": Requirement(("onnxruntime-gpu",), "cuda"),
}


def requirements(entry: EngineEntry) -> tuple[Requirement, ...]:
    """All packages that the engine needs, its library first."""
    if entry.nvidia is None:
        return (_ONNXRUNTIME,)
    library = _LIBRARIES[entry.nvidia.library]
    return library, Requirement(("cuda-bindings",), library.extra)


def known_distributions() -> tuple[str, ...]:
    """Every distribution that some target needs."""
    names = [*_ONNXRUNTIME.any_of, "cuda-bindings"]
    names += [name for library in _LIBRARIES.values() for name in library.any_of]
    return tuple(dict.fromkeys(names))


def version_compatible(manifest: Manifest) -> bool:
    """Whether the recipe asked full TensorRT for engines that later versions run as well."""
    return bool((manifest.recipe.get("tensorrt") or {}).get("version_compatible"))


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 1.7.1.116 -> (1, 7, 1, 116), 2.0rc1 -> (2, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def same_release(one: str, other: str) -> bool:
    """Whether major, minor and patch agree: an engine's header holds no more of its library."""
    return release(one)[:3] == release(other)[:3]
