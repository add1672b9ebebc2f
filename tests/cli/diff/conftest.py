"""Two artifacts that differ in what a test says."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime.artifact.artifact import Artifact, sha256_file
from enginewright.runtime.artifact.manifest import FileEntry, Manifest

Alter = Callable[..., Path]


@pytest.fixture
def alter(tiny_artifact: Path, tmp_path: Path) -> Alter:
    """``alter(change, files, **measures) -> folder``: a copy of the tiny artifact, changed.

    ``change(manifest)`` gives fields to replace; ``files``: new contents by name; ``measures``:
    values that the conformance of every plan has instead.
    """

    def make(
        change: Callable[[Manifest], Mapping[str, Any]] = lambda manifest: {},
        files: Mapping[str, bytes] | None = None,
        **measures: float,
    ) -> Path:
        folder = shutil.copytree(tiny_artifact, tmp_path / "altered")
        manifest = Artifact.open(folder).manifest
        entries = dict(manifest.files)
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
            entries[name] = FileEntry(len(content), sha256_file(folder / name))
        changed = dataclasses.replace(manifest, files=entries, **with_measures(manifest, measures))
        changed = dataclasses.replace(changed, **change(changed))
        (folder / "manifest.json").write_text(changed.to_json(), "utf-8")
        return folder

    return make


def with_measures(manifest: Manifest, values: Mapping[str, float]) -> dict[str, Any]:
    """The conformance of every plan, with other measures."""
    found = {
        plan: {**report, "measures": {**report["measures"], **values}}
        for plan, report in manifest.conformance.items()
    }
    return {"conformance": found}
