"""Which code from an artifact may run here.

A hash inside an artifact proves nothing about who made it. Code is loaded when this machine
compiled it itself (its SHA-256 stands in the user's cache folder), when the installed package
brings the same library, or when the user says so. Code is a library of operators, each cubin and
the index that says how cubins are launched, and an engine file that brings code for the processor.
"""

from __future__ import annotations

import platform
import sys
from pathlib import PurePosixPath

from enginewright.runtime.artifact.artifact import NATIVE_SUFFIXES, Artifact
from enginewright.runtime.artifact.integrity import cache_folder
from enginewright.runtime.artifact.manifest import EngineEntry


def this_platform() -> str:
    """The system and processor that a library is for, such as ``linux-x86_64``."""
    return f"{sys.platform}-{platform.machine()}"


def remember(sha256: str) -> None:
    """Note that this machine compiled a file with that hash."""
    folder = cache_folder()
    if folder is not None:
        known = folder / "native"
        known.mkdir(mode=0o700, exist_ok=True)
        (known / sha256).touch(mode=0o600)


def objection(artifact: Artifact, entry: EngineEntry, allow: bool | None) -> str | None:
    """Why the engine's own code does not run here; None if it does, or has none.

    ``allow``: True takes any code whose bytes are those of the manifest, False none, None what
    this machine compiled or the installed package brings.
    """
    files = native_files(entry)
    if not files:
        return None
    if allow is False:
        return "native code is not allowed (allow_native_code=False)"
    bound = entry.library is not None or entry.platform is not None
    if bound and entry.platform != this_platform():
        code = entry.library or entry.model
        return f"{code} is for {entry.platform}, this machine is {this_platform()}"
    unknown = [file for file in files if not _known(artifact.manifest.files[file].sha256)]
    if allow or not unknown:
        return None
    more = f" and {len(unknown) - 1} more files of it were" if unknown[1:] else " was"
    return (
        f"{unknown[0]}{more} not compiled on this machine, nor installed with the package; "
        f"allow_native_code=True (--allow-native-code) runs it, if you trust who built "
        f"{artifact.path}"
    )


def native_files(entry: EngineEntry) -> tuple[str, ...]:
    """The files of an engine that are code of its own, or say how such code is run."""
    named = {entry.library} if entry.library else set()
    if entry.nvidia is not None:
        named |= {plugin.kernels for plugin in entry.nvidia.plugins}
        named |= {entry.model} if entry.nvidia.host_code else set()
    code = {file for file in entry.files if PurePosixPath(file).suffix in NATIVE_SUFFIXES}
    return tuple(sorted(named | code))


def _known(sha256: str) -> bool:
    folder = cache_folder()
    if folder is not None and (folder / "native" / sha256).is_file():
        return True
    from enginewright.plugins.cpu_library import prebuilt  # needless where all is in the cache

    brought = prebuilt(this_platform())
    return brought is not None and brought.sha256 == sha256
