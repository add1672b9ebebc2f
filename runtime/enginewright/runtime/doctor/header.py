"""Whether a TensorRT-RTX engine's header says what the manifest says.

Its layout is not documented, so only a wrong length is taken for damage.
"""

from __future__ import annotations

from pathlib import Path

from enginewright.runtime.artifact.manifest import NvidiaEntry
from enginewright.runtime.artifact.rtx_header import RtxHeader
from enginewright.runtime.doctor.findings import Finding
from enginewright.runtime.doctor.requirements import same_release


def engine_header(path: Path, nvidia: NvidiaEntry) -> Finding:
    """What the header of the engine at ``path`` has to say."""
    header, size = RtxHeader.read(path), path.stat().st_size
    if header is None:
        return Finding("engine_refused", "warning", f"{path.name}: a header of unknown layout")
    version = ".".join(map(str, header.version))
    if header.length != size:
        return Finding(
            "engine_refused",
            "problem",
            f"{path.name}: {size} bytes",
            f"{header.length} bytes, by its header",
            "build the artifact again",
        )
    lacking = header.lacking(nvidia.capabilities)
    if header.known and same_release(version, nvidia.library_version) and not lacking:
        return Finding("engine_refused", "ok", f"{path.name}: TensorRT-RTX {version}")
    stated = f"{nvidia.library_version} for {', '.join(nvidia.capabilities)}"
    return Finding(
        "engine_refused",
        "warning",
        f"{path.name}: a header of {version}, capabilities 0x{header.bits:02x}",
        f"{stated}, by the manifest",
        "build the artifact again if it does not load",
    )
