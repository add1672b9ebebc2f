"""The artifact's folder: staged under a hidden name, hashed, and published by one rename."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from enginewright.builder.disk import writing_to
from enginewright.runtime.artifact.manifest import MANIFEST_NAME, FileEntry
from enginewright.runtime.errors import BuildError

_EXCHANGE = 2
_AT_FDCWD = -100
EVIDENCE = "evidence"
_REMEDY = (
    "free some space or choose another --output. An artifact that was there before is untouched"
)


@contextlib.contextmanager
def staging(output: Path, name: str) -> Iterator[Path]:
    """A hidden folder beside the artifact's place; removed whatever happens.

    Raises BuildError where the disk is full or the folder cannot be written.
    """
    folder = output / f".{name}.{os.getpid()}.partial"
    _check_place(output / name)
    try:
        with writing_to(output, "", _REMEDY):
            output.mkdir(parents=True, exist_ok=True)
            _remove_stale(output, name)
            folder.mkdir()
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_place(place: Path) -> None:
    """An artifact may be replaced; anything else that stands there is somebody's."""
    if not place.exists() and not place.is_symlink():
        return
    if place.is_symlink() or not (place / MANIFEST_NAME).is_file():
        raise BuildError(
            f"{place} exists and is no artifact of an earlier build; move it away, or choose "
            f"another name or --output"
        )


def hash_files(folder: Path) -> dict[str, FileEntry]:
    """Size and digest of every file but the evidence, by path relative to the folder."""
    files = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and relative.parts[0] != EVIDENCE:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[relative.as_posix()] = FileEntry(path.stat().st_size, digest)
    return files


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Canonical JSON: sorted keys, two spaces, one final newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def publish(folder: Path, place: Path) -> None:
    """Flush the staged folder to disk and put it in its place at once.

    An artifact that was there is exchanged for the new one in one step, then removed.
    """
    for path in [*folder.rglob("*"), folder]:
        _sync(path)
    if not place.exists():
        folder.rename(place)
    elif not _exchange(folder, place):
        old = folder.with_suffix(".old")
        place.rename(old)
        folder.rename(place)
        shutil.rmtree(old)
    _sync(place.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders atomically; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, bytes(a), _AT_FDCWD, bytes(b), _EXCHANGE) == 0)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale(output: Path, name: str) -> None:
    """Remove what killed builds of this artifact left behind."""
    pattern = re.compile(rf"\.{re.escape(name)}\.(\d+)\.(partial|old)")
    for path in output.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            shutil.rmtree(path, ignore_errors=True)
