"""What an artifact is in a registry: an OCI image manifest with a layer for each file.

| part         | value                                                                        |
|--------------|------------------------------------------------------------------------------|
| artifactType | application/vnd.enginewright.artifact.v1                                     |
| config       | the empty object                                                             |
| layers       | manifest.json, every file that it lists, evidence/; each title is the path   |
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from enginewright.runtime.artifact.artifact import Artifact, sha256_file
from enginewright.runtime.artifact.manifest import MANIFEST_NAME
from enginewright.runtime.errors import RegistryError

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.enginewright.artifact.v1"
EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_LAYER_TYPE = "application/vnd.enginewright.file.v1"
_TITLE = "org.opencontainers.image.title"
_EVIDENCE = "evidence"
_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class Layer:
    """One file; ``sha256`` in hex."""

    path: str
    size: int
    sha256: str

    @property
    def digest(self) -> str:
        """As registries write it."""
        return f"sha256:{self.sha256}"


def digest_of(content: bytes) -> str:
    """``sha256:...`` of a few bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def layers_of(artifact: Artifact) -> list[Layer]:
    """The files of an artifact that was checked; its evidence is hashed here."""
    listed = [Layer(p, entry.size, entry.sha256) for p, entry in artifact.manifest.files.items()]
    beside = [artifact.path / MANIFEST_NAME]
    beside += [path for path in (artifact.path / _EVIDENCE).rglob("*") if _is_kept(path)]
    found = [
        Layer(path.relative_to(artifact.path).as_posix(), path.stat().st_size, sha256_file(path))
        for path in beside
    ]
    return sorted([*listed, *found], key=lambda layer: layer.path)


def _is_kept(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and not path.name.startswith(".")


def image_manifest(artifact: Artifact, layers: list[Layer]) -> bytes:
    """The registry's manifest; the same files give the same bytes."""
    data = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": _EMPTY_TYPE, "digest": digest_of(EMPTY), "size": len(EMPTY)},
        "layers": [
            {
                "mediaType": _LAYER_TYPE,
                "digest": layer.digest,
                "size": layer.size,
                "annotations": {_TITLE: layer.path},
            }
            for layer in layers
        ],
        "annotations": {"org.opencontainers.image.title": artifact.manifest.name},
    }
    return json.dumps(data, indent=2, sort_keys=True).encode()


def read_layers(content: bytes, where: str) -> list[Layer]:
    """The files of an image manifest; raises RegistryError unless it is that of an artifact."""
    try:
        data = json.loads(content)
        if data.get("artifactType") != ARTIFACT_TYPE:
            found = data.get("artifactType") or data["config"]["mediaType"]
            raise RegistryError(f"{where}: is no artifact of Enginewright, but {found!r:.80}")
        layers = [
            Layer(each["annotations"][_TITLE], int(each["size"]), _hex(each["digest"]))
            for each in data["layers"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RegistryError(f"{where}: the registry's manifest is malformed ({error!r})") from error
    _check(layers, where)
    return layers


def _hex(digest: str) -> str:
    kind, _, value = digest.partition(":")
    if kind != "sha256" or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ValueError(f"digest {digest!r:.80}")
    return value


def _check(layers: list[Layer], where: str) -> None:
    """Paths must lie inside the folder, each only once, and none below another."""
    paths = [layer.path for layer in layers]
    for path in paths:
        name = PurePosixPath(path)
        if name.is_absolute() or not name.parts or {"..", "."} & set(path.split("/")):
            raise RegistryError(f"{where}: holds a file {path!r:.200}, which is outside its folder")
        if "\\" in path or "\0" in path or str(name) != path:
            raise RegistryError(f"{where}: holds a file {path!r:.200}, which is no plain path")
    if len(set(paths)) < len(paths) or len(paths) > _MOST_LAYERS or MANIFEST_NAME not in paths:
        raise RegistryError(
            f"{where}: its files are not those of an artifact (a {MANIFEST_NAME}, each path once)"
        )
    if any(layer.size < 0 for layer in layers):
        raise RegistryError(f"{where}: a layer has a negative size")
