"""The artifact's folder: staged under a hidden name, and hashed; `publishing` makes it appear."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from enginewright.builder.disk import writing_to
from enginewright.runtime.artifact.manifest import MANIFEST_NAME, FileEntry
from enginewright.runtime.errors import BuildError

EVIDENCE = "evidence"
_REMEDY = (
    "free some space or choose another --output. An artifact that was there before is untouched"
)


def _silent(line: str) -> None:
    """Told to nobody."""


@contextlib.contextmanager
def staging(output: Path, name: str, tell: Callable[[str], None] = _silent) -> Iterator[Path]:
    """A hidden folder beside the artifact's place; removed whatever happens.

    ``tell`` hears of what a killed build left behind, which is removed.

    Raises BuildError where the disk is full or the folder cannot be written.
    """
    folder = output / f".{name}.{os.getpid()}.partial"
    _check_place(output / name)
    try:
        with writing_to(output, "", _REMEDY):
            output.mkdir(parents=True, exist_ok=True)
            _remove_stale(output, name, tell)
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


def _remove_stale(output: Path, name: str, tell: Callable[[str], None]) -> None:
    """Remove what killed builds of this artifact left behind."""
    pattern = re.compile(rf"\.{re.escape(name)}\.(\d+)\.(partial|old)")
    for path in output.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            shutil.rmtree(path, ignore_errors=True)
            tell(f"an earlier build (process {match[1]}) was ended; {path.name} of it is removed")
