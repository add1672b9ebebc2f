"""What a device answered: a file under the artifact's evidence/, outside its hashes.

It says which artifact (by digest) ran on which device, with which software, how far it was from
the reference, and how fast. Nobody has signed it.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.atomic import write_text
from enginewright.runtime.doctor.driver import read_driver
from enginewright.runtime.doctor.host import read_host
from enginewright.runtime.doctor.installed import read_installed
from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.verification import PlanResult

ATTESTATIONS = "evidence/attestations"
FORMAT = 1


def attest(artifact: Artifact, results: Mapping[str, PlanResult]) -> Path:
    """Write what the plans that ran here answered; an earlier one of the same device is replaced.

    Raises EnginewrightError where the folder cannot be written.
    """
    digest = artifact.digest()
    device = device_here(gpu=any(r.for_gpu and r.report for r in results.values()))
    content = {
        "format": FORMAT,
        "artifact": artifact.manifest.name,
        "artifact_digest": digest,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "system": platform.platform(),
        "versions": _versions(),
        "plans": {plan: _plan(result, artifact) for plan, result in results.items()},
    }
    name = f"{_slug(device['name'])}-{digest.removeprefix('sha256:')[:16]}.json"
    path = artifact.evidence(f"{ATTESTATIONS}/{name}")
    try:
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise EnginewrightError(
            f"{path}: the attestation cannot be written ({error.strerror}); verify a copy of the "
            f"artifact in a folder that you may write to, or pass --no-attest"
        ) from error
    return path


def device_here(*, gpu: bool) -> dict[str, Any]:
    """The first GPU, or the processor."""
    if gpu:
        driver = read_driver()
        return {"kind": "gpu", "driver": driver.version, **asdict(driver.devices[0])}
    host = read_host()
    return {"kind": "cpu", "name": host.processor, "platform": host.platform}


def _versions() -> dict[str, str]:
    ours = importlib.metadata.version("enginewright")
    return {
        "enginewright": ours,
        "python": platform.python_version(),
        **read_installed().versions,
    }


def _plan(result: PlanResult, artifact: Artifact) -> dict[str, Any]:
    if result.report is None:  # where the folder lies is nobody's business
        return {"not_run": str(result.reason).replace(str(artifact.path), artifact.manifest.name)}
    return {
        **result.report.as_dict(),
        "speed": asdict(result.speed) if result.speed is not None else None,
    }


def _slug(name: str) -> str:
    """A device's name as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "device"
