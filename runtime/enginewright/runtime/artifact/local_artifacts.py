"""Which artifacts were built on this machine, and from what.

The builder leaves one small record for each artifact in the user's cache folder; LLM looks there
when it is given a model's name, or its checkpoint, in an artifact's place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from enginewright.runtime.artifact.integrity import cache_folder
from enginewright.runtime.artifact.manifest import MANIFEST_NAME, Manifest, parse_manifest
from enginewright.runtime.errors import ArtifactError

_READ_BY_BUILDS = (".json", ".jinja", ".safetensors", ".model", ".txt")

FileStates = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class BuiltFrom:
    """Where a build read its source, and the state in which it was then.

    ``location``: a folder or file, absolute. ``files``: size and time of change (ns) of each file,
    so that a later change is found out without hashing gigabytes.
    """

    location: str
    files: FileStates

    @staticmethod
    def of(location: Path) -> BuiltFrom:
        """The state of the files at ``location`` as they are now."""
        place = location.resolve()
        return BuiltFrom(str(place), file_states(place))

    def changed_file(self) -> str | None:
        """A file that was changed, added or removed since; None if there is none."""
        now = file_states(Path(self.location))
        names = sorted(now.keys() | self.files.keys())
        return next((name for name in names if now.get(name) != self.files.get(name)), None)


@dataclass(frozen=True)
class LocalArtifact:
    """An artifact that is still where a build on this machine put it."""

    path: Path
    source: BuiltFrom
    built_at: float
    manifest: Manifest

    @property
    def precisions(self) -> tuple[str, ...]:
        """Of its engines, the preferred one's first."""
        return tuple(dict.fromkeys(engine.precision for engine in self.manifest.engines))


def remember_artifact(artifact: Path, source: BuiltFrom, digest: str) -> None:
    """Note what a published artifact was built from; ``digest``: its manifest's of the source.

    A cache that cannot be written only means that the artifact must be named by its path.
    """
    folder = _folder()
    if folder is None:
        return
    place = str(artifact.resolve())
    record = {"artifact": place, "built_at": time.time(), "digest": digest, **asdict(source)}
    name = f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(record, file)
        Path(temporary).replace(folder / name)


def local_artifacts() -> list[LocalArtifact]:
    """Those that still exist, the newest first."""
    folder = _folder()
    if folder is None:
        return []
    found = [artifact for path in folder.glob("*.json") for artifact in _read(path)]
    return sorted(found, key=lambda artifact: artifact.built_at, reverse=True)


def file_states(location: Path) -> FileStates:
    """Of a file, or of the files in a checkpoint's folder that a build may read."""
    if location.is_file():
        return {location.name: _state(location)}
    try:
        paths = sorted(location.iterdir())
    except OSError:
        return {}
    read = [path for path in paths if path.suffix in _READ_BY_BUILDS and path.is_file()]
    return {path.name: _state(path) for path in read}


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _folder() -> Path | None:
    cache = cache_folder()
    return None if cache is None else cache / "artifacts"


def _read(record: Path) -> Iterator[LocalArtifact]:
    """The record's artifact, unless it is gone or another one took its place."""
    try:
        data = json.loads(record.read_text("utf-8"))
        states = data["files"].items()
        source = BuiltFrom(data["location"], {name: (int(a), int(b)) for name, (a, b) in states})
        place, built_at = Path(data["artifact"]), float(data["built_at"])
        manifest = parse_manifest((place / MANIFEST_NAME).read_text("utf-8"), str(place))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArtifactError):
        return
    if manifest.source.digest == data.get("digest"):
        yield LocalArtifact(place, source, built_at, manifest)
