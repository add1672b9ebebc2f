"""The first bytes of a TensorRT-RTX engine, as far as they could be told from engines.

| bytes  | meaning                                       |
|--------|-----------------------------------------------|
| 0-3    | ``vtrt``                                      |
| 16-23  | length of the whole engine, little endian     |
| 24-27  | version: major, minor, patch, build           |
| 28-31  | ``vtrt``                                      |
| 32     | compute capabilities, a bit each              |

NVIDIA documents none of it, so only a wrong length is taken for damage.
"""

from __future__ import annotations

import struct
from pathlib import Path

from enginewright.runtime.artifact.manifest import NvidiaEntry
from enginewright.runtime.doctor.findings import Finding
from enginewright.runtime.doctor.requirements import same_release

_HEADER = struct.Struct("<4s12xQ4B4sB")
_MAGIC = b"vtrt"
_BITS = {"7.5": 0x01, "8.0": 0x02, "8.6": 0x04, "8.9": 0x08, "12.0": 0x10, "12.1": 0x20}


def engine_header(path: Path, nvidia: NvidiaEntry) -> Finding:
    """Whether the engine's header says what the manifest says."""
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    size = path.stat().st_size
    if len(head) < _HEADER.size or not head.startswith(_MAGIC):
        return Finding("engine_refused", "warning", f"{path.name}: a header of unknown layout")
    _, length, *numbers, second, bits = _HEADER.unpack(head)
    version = ".".join(map(str, numbers))
    if length != size:
        return Finding(
            "engine_refused",
            "problem",
            f"{path.name}: {size} bytes",
            f"{length} bytes, by its header",
            "build the artifact again",
        )
    lacking = [each for each in nvidia.capabilities if not _BITS.get(each, 0) & bits]
    agrees = second == _MAGIC and same_release(version, nvidia.library_version) and not lacking
    if agrees:
        return Finding("engine_refused", "ok", f"{path.name}: TensorRT-RTX {version}")
    stated = f"{nvidia.library_version} for {', '.join(nvidia.capabilities)}"
    return Finding(
        "engine_refused",
        "warning",
        f"{path.name}: a header of {version}, capabilities 0x{bits:02x}",
        f"{stated}, by the manifest",
        "build the artifact again if it does not load",
    )
