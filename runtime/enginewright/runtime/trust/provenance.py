"""What an artifact was built from, as an in-toto statement with SLSA's provenance as predicate.

Everything in it follows from the manifest, whose digest is the statement's subject: the manifest
holds the hash of every file, so that who signs the statement signs all of them.
"""

from __future__ import annotations

import json
from typing import Any

from enginewright.runtime.artifact.manifest import MANIFEST_NAME, Manifest

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:enginewright:build:v1"
BUILDER = "urn:enginewright:builder"
SOURCE_DIGEST = "enginewrightSource"
"""A SHA-256 over several files, so that it is not told as that of one."""


def statement(manifest: Manifest, manifest_sha256: str) -> dict[str, Any]:
    """The statement about the artifact whose manifest has that SHA-256."""
    source = manifest.source
    return {
        "_type": STATEMENT,
        "subject": [{"name": MANIFEST_NAME, "digest": {"sha256": manifest_sha256}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": manifest.recipe},
                "resolvedDependencies": [
                    {
                        "name": "source",
                        "uri": source_uri(manifest),
                        "digest": {SOURCE_DIGEST: source.digest.removeprefix("sha256:")},
                        "annotations": {
                            "architecture": source.architecture,
                            "revision": source.revision,
                        },
                    }
                ],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": dict(manifest.tools)},
                "byproducts": [
                    {"name": name, "digest": {"sha256": entry.sha256}}
                    for name, entry in sorted(manifest.files.items())
                ],
            },
        },
    }


def payload(manifest: Manifest, manifest_sha256: str) -> bytes:
    """The statement's bytes, which are signed."""
    return json.dumps(statement(manifest, manifest_sha256), sort_keys=True).encode()


def source_uri(manifest: Manifest) -> str:
    """What the weights came from: ``hub:owner/name``, ``package:...``, ``checkpoint:folder``."""
    return f"{manifest.source.kind}:{manifest.source.reference}"


def subject_of(signed: bytes) -> str | None:
    """The SHA-256 of the manifest that a signed statement is about; None: it is about no one's."""
    try:
        data = json.loads(signed)
        [subject] = data["subject"]
        known = data["_type"] == STATEMENT and subject["name"] == MANIFEST_NAME
        return str(subject["digest"]["sha256"]) if known else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
