"""A sanity check of the engine that TensorRT-RTX wrote, by its header."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from enginewright.runtime.artifact.rtx_header import RtxHeader
from enginewright.runtime.errors import BuildError

_SEEN = (1, 7)
"""The version whose header is known; an engine of another one is not looked at."""


def check_header(engine: Path, capabilities: Sequence[str]) -> None:
    """Raise BuildError where the engine is cut off, or is not for these capabilities."""
    size, header = engine.stat().st_size, RtxHeader.read(engine)
    if header is None:
        raise BuildError(f"TensorRT-RTX wrote {size} bytes that are no engine; build again")
    if header.version[:2] != _SEEN:
        return
    if header.length != size:
        raise BuildError(
            f"TensorRT-RTX wrote {size} bytes of an engine that says it has {header.length}; "
            f"see whether the disk is full, and build again"
        )
    missing = header.lacking(capabilities)
    if missing:
        raise BuildError(
            f"TensorRT-RTX built an engine that is not for compute capability {', '.join(missing)}"
        )
