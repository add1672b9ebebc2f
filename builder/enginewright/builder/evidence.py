"""What a build leaves for people and for auditors, beside what the artifact's hashes cover."""

from __future__ import annotations

from pathlib import Path

from enginewright.runtime.artifact.artifact import Artifact, read_manifest
from enginewright.runtime.report.content import Asked
from enginewright.runtime.report.page import REPORT_FILE, render
from enginewright.runtime.trust.bom import BOM_FILE, bill_of_materials


def write_evidence(folder: Path) -> None:
    """The report and the bill of materials of the artifact in the folder, as it stands there."""
    artifact = Artifact(folder, read_manifest(folder))
    sha256 = artifact.digest().removeprefix("sha256:")
    bom, report = folder / BOM_FILE, folder / REPORT_FILE
    bom.parent.mkdir(exist_ok=True)
    bom.write_text(bill_of_materials(artifact.manifest, sha256) + "\n", encoding="utf-8")
    report.write_text(render(Asked(artifact), report), encoding="utf-8")
