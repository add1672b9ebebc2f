"""Whether the artifact's folder is whole: its manifest, and its files without hashing weights."""

from __future__ import annotations

from pathlib import Path

from enginewright.runtime.artifact.artifact import Artifact, read_manifest
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.doctor.codes import Code
from enginewright.runtime.doctor.findings import Finding
from enginewright.runtime.errors import (
    ArtifactError,
    ArtifactNotFoundError,
    IntegrityError,
    SchemaVersionError,
)

_SHOWN = 5


def artifact_findings(folder: Path) -> tuple[Artifact | None, list[Finding]]:
    """What is wrong with the folder, and the artifact if its manifest can be read.

    Raises ArtifactNotFoundError where there is no artifact at all.
    """
    try:
        manifest = read_manifest(folder)
        artifact = Artifact(folder, manifest)
        artifact.check_names()
    except ArtifactNotFoundError:
        raise
    except ArtifactError as error:
        return None, [_unreadable(error)]
    findings = [Finding("manifest_schema", "ok", f"schema {manifest.schema_version}")]
    findings += _files(folder, manifest)
    if all(finding.status == "ok" for finding in findings):
        findings.append(_hashes(folder))
    return artifact, findings


def _unreadable(error: ArtifactError) -> Finding:
    code: Code = "manifest_unreadable"
    if isinstance(error, SchemaVersionError):
        code = "manifest_schema"
    elif isinstance(error, IntegrityError):
        code = "manifest_altered"
    return Finding(code, "problem", str(error))


def _files(folder: Path, manifest: Manifest) -> list[Finding]:
    again = "copy the artifact again, whole"
    listed = manifest.files.items()
    missing = [name for name, _ in listed if not (folder / name).is_file()]
    sizes = {name: (folder / name).stat().st_size for name in manifest.files if name not in missing}
    other = [
        f"{name} ({sizes[name]} bytes, not {entry.size})"
        for name, entry in listed
        if name in sizes and sizes[name] != entry.size
    ]
    findings = []
    if missing:
        findings.append(Finding("file_missing", "problem", _some(missing), "all files", again))
    else:
        findings.append(Finding("file_missing", "ok", f"all {len(manifest.files)} are there"))
    if other:
        findings.append(Finding("file_size", "problem", _some(other), "the built sizes", again))
    else:
        total = sum(sizes.values()) / 1e6
        findings.append(Finding("file_size", "ok", f"as built, {total:.1f} MB in all"))
    return findings


def _hashes(folder: Path) -> Finding:
    try:
        Artifact.open(folder, verify="never")
    except ArtifactError as error:
        return Finding("file_altered", "problem", str(error))
    return Finding("file_altered", "ok", "small files are as built; weights were not hashed")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
