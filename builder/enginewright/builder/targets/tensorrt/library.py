"""Which TensorRT is installed, found without loading its hundreds of megabytes.

The parser of TensorRT-RTX ends the process when it meets a plugin and cannot open
``libtensorrt_rtx.so``, and the wheel has only ``libtensorrt_rtx.so.1``. The loader reads its search
path when a process starts, so ``environment`` gives the compiling process one with that name in it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from enginewright.runtime.doctor.driver import read_driver
from enginewright.runtime.errors import MissingDependencyError

Name = Literal["tensorrt_rtx", "tensorrt"]
_DISTRIBUTIONS: Mapping[Name, tuple[str, ...]] = {
    "tensorrt_rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"),
}
_NO_GPU_NEEDED = "target tensorrt_rtx needs neither TensorRT nor a GPU to build"
_MISSING: Mapping[Name, str] = {
    "tensorrt_rtx": "target tensorrt_rtx needs TensorRT-RTX: pip install 'enginewright[rtx]'",
    "tensorrt": (
        "target tensorrt needs TensorRT, which is not installed: pip install "
        "'enginewright[tensorrt]' (pip takes its libraries from NVIDIA's own index, "
        f"https://pypi.nvidia.com); {_NO_GPU_NEEDED}"
    ),
}


@dataclass(frozen=True)
class Library:
    """An installed TensorRT: the module of that name, its version, and where its libraries lie."""

    name: Name
    version: str
    folder: Path | None

    @contextlib.contextmanager
    def environment(self) -> Iterator[dict[str, str]]:
        """The environment for a process that loads it: the libraries under their plain names."""
        with TemporaryDirectory(prefix="enginewright-tensorrt-") as links:
            for path in sorted(self.folder.glob("*.so.*")) if self.folder else ():
                plain = Path(links, path.name.partition(".so.")[0] + ".so")
                if not plain.is_symlink():
                    plain.symlink_to(path)
            earlier = os.environ.get("LD_LIBRARY_PATH")
            search = links if not earlier else f"{links}{os.pathsep}{earlier}"
            yield {**os.environ, "LD_LIBRARY_PATH": search}


def find_library(name: Name) -> Library:
    """The installed library; raises MissingDependencyError with what to install."""
    if importlib.util.find_spec(name) is None:
        raise MissingDependencyError(_MISSING[name])
    found = importlib.util.find_spec(f"{name}_libs")
    places = found.submodule_search_locations if found else None
    return Library(name, _version(name), Path(places[0]) if places else None)


def _version(name: Name) -> str:
    for distribution in _DISTRIBUTIONS[name]:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    raise MissingDependencyError(f"module {name} is there without its package; {_MISSING[name]}")


def gpu_capability() -> str:
    """The compute capability of the first GPU; MissingDependencyError where there is none."""
    found = read_driver()
    if not found.devices:
        why = found.problem or "the driver finds none"
        raise MissingDependencyError(
            f"target tensorrt needs an NVIDIA GPU to build: {why}; build on the machine with it "
            f"(nvidia-smi tells more); {_NO_GPU_NEEDED}"
        )
    return found.devices[0].capability
