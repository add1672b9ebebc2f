"""What the compiling process is asked for, and what it answers: plain data, in JSON files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Initializer:
    """A tensor of the graph whose bytes lie in the weights' file."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True)
class Profile:
    """An optimization profile: lowest, best and highest shape of each input."""

    name: str
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class Job:
    """One engine to build.

    ``capabilities``: members of ComputeCapability; none: the library's own choice. ``plugin``:
    whether the attention plugin is in the graph; ``plugin_library``: the one in C++, which goes
    into the engine. The rest is for TensorRT alone: ``timing_cache`` is read if it is there, and
    written.
    """

    library: str
    graph: str
    weights: str
    engine: str
    initializers: tuple[Initializer, ...]
    profiles: tuple[Profile, ...]
    capabilities: tuple[str, ...] = ()
    plugin: bool = False
    plugin_library: str | None = None
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    timing_cache: str | None = None

    @property
    def host_code(self) -> bool:
        """Whether the engine file brings code for the processor."""
        return self.version_compatible or self.plugin_library is not None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        data = json.loads(path.read_text(encoding="utf-8"))
        data["initializers"] = tuple(Initializer(**each) for each in data["initializers"])
        data["profiles"] = tuple(_profile(each) for each in data["profiles"])
        data["capabilities"] = tuple(data["capabilities"])
        return cls(**data)


def _profile(data: dict[str, Any]) -> Profile:
    shapes = {
        name: tuple(tuple(shape) for shape in extremes) for name, extremes in data["shapes"].items()
    }
    return Profile(data["name"], shapes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Tensor:
    """An input or output of the network, dtype under its numpy name."""

    name: str
    direction: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Outcome:
    """What was built, or why not: ``errors`` are the library's lines.

    ``anonymous_peak`` and ``mapped_peak``: the process's resident memory, in bytes; of mapped
    files, most are the weights and the library itself, which the system takes back when it likes.
    """

    version: str = ""
    tensors: tuple[Tensor, ...] = ()
    layers: int = 0
    engine_bytes: int = 0
    anonymous_peak: int = 0
    mapped_peak: int = 0
    seconds: float = 0.0
    errors: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tensors = (Tensor(**{**each, "shape": tuple(each["shape"])}) for each in data["tensors"])
        return cls(**{**data, "tensors": tuple(tensors), "errors": tuple(data["errors"])})
