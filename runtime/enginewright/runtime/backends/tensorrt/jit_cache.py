"""What TensorRT-RTX compiled on this machine, kept in the user's cache folder between processes.

A file for each engine, GPU, driver and version of the library. The folder is the user's alone; the
library itself refuses what another GPU or version wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from enginewright.runtime.artifact.integrity import cache_folder


@dataclass(frozen=True)
class JitKey:
    """What compiled kernels depend on. ``engine``: the SHA-256 of the engine's file."""

    engine: str
    device: str
    capability: str
    cuda: str
    library_version: str

    @property
    def name(self) -> str:
        text = "\n".join(map(str, astuple(self)))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class JitCache:
    """The library's runtime cache and its file; ``cache`` None: the library has none."""

    def __init__(self, cache: Any | None, path: Path | None) -> None:
        self._cache, self._path = cache, path

    @staticmethod
    def attached(configs: Sequence[Any], key: JitKey) -> JitCache:
        """One cache, read from its file, for all contexts that are made with these configs."""
        make = getattr(configs[0], "create_runtime_cache", None)
        folder = cache_folder()
        if make is None or folder is None:  # full TensorRT compiles nothing when it loads
            return JitCache(None, None)
        path, cache = folder / "tensorrt" / key.name, make()
        with contextlib.suppress(OSError):  # there is none yet
            cache.deserialize(path.read_bytes())
        for config in configs:
            config.set_runtime_cache(cache)
        return JitCache(cache, path)

    def save(self) -> None:
        """Write the file; one that cannot be written only costs time at the next load."""
        if self._cache is None or self._path is None:
            return
        content = bytes(self._cache.serialize())
        with contextlib.suppress(OSError):
            write_private(self._path, content)

    def close(self) -> None:
        """Save, and let go of the library's cache."""
        self.save()
        self._cache = None


def write_private(path: Path, content: bytes) -> None:
    """Replace a file of the cache folder in one step, in a folder of mode 0700."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    Path(temporary).replace(path)
