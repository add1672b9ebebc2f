"""TensorRT's timing cache: which kernel was fastest, kept so that a next build chooses alike."""

from __future__ import annotations

from pathlib import Path

from enginewright.builder.cache import digest
from enginewright.builder.targets.tensorrt.library import Library
from enginewright.runtime.artifact.integrity import cache_folder


def timing_cache(library: Library, capability: str) -> Path | None:
    """The file for this library on this kind of GPU, in a folder that exists; None without a
    usable cache folder.
    """
    root = cache_folder()
    if root is None:
        return None
    folder = root / "timing"
    folder.mkdir(parents=True, exist_ok=True)
    key = digest({"library": library.name, "version": library.version, "gpu": capability})
    return folder / f"{key}.timing"
