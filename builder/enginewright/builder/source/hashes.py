"""SHA-256 of source files, remembered so that a second build does not read them all again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from enginewright.runtime.artifact.integrity import FileState, cache_folder, sha256_file


def source_digest(files: Mapping[str, Path]) -> str:
    """``sha256:...`` over the names and contents of a source's files, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{cached_sha256(files[name])}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def cached_sha256(path: Path) -> str:
    """The file's SHA-256, from the cache while its ``FileState`` is unchanged."""
    state = FileState.of(path)
    record = _record(state)
    if record is None:
        return sha256_file(path)
    known = _read(record, state)
    if known is not None:
        return known
    found = sha256_file(path)
    if FileState.of(path) == state:  # else it changed under our hands: remember nothing
        _write(record, state, found)
    return found


def _record(state: FileState) -> Path | None:
    folder = cache_folder()
    name = hashlib.sha256(state.path.encode()).hexdigest()[:32]
    return None if folder is None else folder / "hashes" / f"{name}.json"


def _read(record: Path, state: FileState) -> str | None:
    try:
        found = json.loads(record.read_text("utf-8"))
        sha256 = found.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return str(sha256) if found == asdict(state) else None


def _write(record: Path, state: FileState, sha256: str) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        record.parent.mkdir(mode=0o700, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=record.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({**asdict(state), "sha256": sha256}, file)
        Path(temporary).replace(record)
