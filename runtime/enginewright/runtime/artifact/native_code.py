"""Which code from an artifact may run here.

A hash inside an artifact proves nothing about who made it. A library is loaded when this machine
compiled it itself (its SHA-256 stands in the user's cache folder), or when the user says so.
"""

from __future__ import annotations

import platform
import sys

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.integrity import cache_folder
from enginewright.runtime.artifact.manifest import EngineEntry


def this_platform() -> str:
    """The system and processor that a library is for, such as ``linux-x86_64``."""
    return f"{sys.platform}-{platform.machine()}"


def remember(sha256: str) -> None:
    """Note that this machine compiled a library with that hash."""
    folder = cache_folder()
    if folder is not None:
        known = folder / "native"
        known.mkdir(mode=0o700, exist_ok=True)
        (known / sha256).touch(mode=0o600)


def objection(artifact: Artifact, entry: EngineEntry, allow: bool | None) -> str | None:
    """Why the engine's own code does not run here; None if it does, or has none.

    ``allow``: True takes any library whose bytes are those of the manifest, False none, None those
    that this machine compiled.
    """
    if entry.library is None:
        return None
    if allow is False:
        return "native code is not allowed (allow_native_code=False)"
    if entry.platform != this_platform():
        return f"{entry.library} is for {entry.platform}, this machine is {this_platform()}"
    if allow or _known(artifact.manifest.files[entry.library].sha256):
        return None
    return (
        f"{entry.library} was not compiled on this machine; allow_native_code=True "
        f"(--allow-native-code) runs it, if you trust who built {artifact.path}"
    )


def _known(sha256: str) -> bool:
    folder = cache_folder()
    return folder is not None and (folder / "native" / sha256).is_file()
