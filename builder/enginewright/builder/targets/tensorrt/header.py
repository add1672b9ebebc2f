"""The first bytes of a TensorRT-RTX engine: a sanity check, of what was seen in version 1.7.

| bytes | meaning                                             |
|-------|-----------------------------------------------------|
| 0-3   | "vtrt"                                              |
| 16-23 | length of the engine, little-endian                 |
| 24-27 | version: major, minor, patch, build                 |
| 32    | compute capabilities, a bit each                    |

NVIDIA documents none of it, so an engine of another version is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from enginewright.builder.targets.tensorrt.capabilities import RTX
from enginewright.runtime.errors import BuildError

_MAGIC = b"vtrt"
_SEEN = (1, 7)
_SIZE = 64
_BITS = {name: 1 << place for place, name in enumerate(RTX)}


def check_header(engine: Path, capabilities: Sequence[str]) -> None:
    """Raise BuildError where the engine is cut off, or is not for these capabilities."""
    with engine.open("rb") as file:
        header = file.read(_SIZE)
    if len(header) < _SIZE or header[:4] != _MAGIC:
        raise BuildError(f"TensorRT-RTX wrote {len(header)} bytes that are no engine: {header!r}")
    if tuple(header[24:26]) != _SEEN:
        return
    size, stated = engine.stat().st_size, int.from_bytes(header[16:24], "little")
    if stated != size:
        raise BuildError(f"TensorRT-RTX wrote {size} bytes of an engine that says it has {stated}")
    missing = [name for name in capabilities if not header[32] & _BITS[name]]
    if missing:
        raise BuildError(
            f"TensorRT-RTX built an engine that is not for compute capability {', '.join(missing)}"
        )
