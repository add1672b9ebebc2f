"""An artifact held to its reference values where it is: every hash, then each plan that runs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import MANIFEST_NAME, EngineEntry
from enginewright.runtime.conformance import REFERENCE_FILE, Reference, Report, judge, measure
from enginewright.runtime.errors import DeviceError, MissingDependencyError, TargetError
from enginewright.runtime.llm import LLM
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.trust.bom import BOM_FILE, bill_of_materials
from enginewright.runtime.trust.policy import Policy

_DECODED_TOKENS = 64
_NO_GPU = ("no_driver", "no_device")
"""Codes that say that no GPU is here; the others are told by a machine that has one."""


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one row: reading a prompt, and writing after its first token."""

    prompt_tokens: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float


@dataclass(frozen=True)
class PlanResult:
    """What became of one plan: its report, or why it did not run here.

    ``for_gpu``: it needs an NVIDIA GPU. ``absent``: it did not run because no GPU, or no package
    that drives it, is here. ``built``: what the build says of its graph, "passed" where that was
    interpreted in place of the engine.
    """

    for_gpu: bool
    report: Report | None = None
    speed: Speed | None = None
    reason: str | None = None
    built: str | None = None
    absent: bool = False

    @property
    def passed(self) -> bool:
        """Whether nothing failed: a plan that did not run has not."""
        return self.report is None or self.report.passed


def verify_artifact(
    path: str | Path,
    *,
    threads: int | None = None,
    allow_native_code: bool | None = None,
    policy: Policy | None = None,
    timed: bool = False,
) -> dict[str, PlanResult]:
    """Check every file of the artifact, run its engines against the stored reference values.

    The result of each plan; ``timed`` measures speed as well, which plans for a GPU always do.
    Raises ArtifactError (and below) for a damaged artifact, and for one of which no plan runs and
    some plan has another reason than that no GPU is here; DeviceError for an engine that fails
    while it runs. Needs no torch.
    """
    artifact = Artifact.open(path, verify="always")
    if policy is not None:
        policy.check(artifact, "always")
    reference = Reference.load(artifact.file(REFERENCE_FILE))
    results: dict[str, PlanResult] = {}
    for entry in artifact.plans():
        on_gpu = entry.nvidia is not None
        try:
            llm = LLM(
                path,
                plan=entry.plan,
                threads=threads,
                allow_native_code=allow_native_code,
                policy=policy,
                generation_config="vllm",
            )
        except (TargetError, DeviceError, MissingDependencyError) as error:
            if isinstance(error, MissingDependencyError) and not on_gpu:
                raise
            results[entry.plan] = _not_run(artifact, entry, error)
            continue
        with llm:
            results[entry.plan] = _run(llm, artifact, entry, reference, timed or on_gpu)
    refused = [str(each.reason) for each in results.values() if not (each.report or each.absent)]
    if refused and not any(result.report for result in results.values()):
        raise TargetError("; ".join(refused))
    return results


def remarks(artifact: Artifact) -> list[str]:
    """What the hashes do not cover, and a reader should know of: no failure, nothing of it is read
    by a load."""
    lying = sorted(artifact.path.rglob("*"))
    files = (path for path in lying if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(artifact.path).as_posix() for path in files)
    found = [
        f"{name}: is not in the manifest, and is never read"
        for name in names
        if not (artifact.holds(name) or name == MANIFEST_NAME or name.startswith("evidence/"))
    ]
    if not _has_own_bom(artifact):
        found.append(
            f"{BOM_FILE}: does not say what follows from the manifest (as this "
            f"version of Enginewright tells it)"
        )
    return found


def _has_own_bom(artifact: Artifact) -> bool:
    """Whether the bill of materials, where there is one, is that of the manifest."""
    path = artifact.path / BOM_FILE
    if not path.exists():
        return True
    digest = artifact.digest().removeprefix("sha256:")
    try:
        return bool(
            json.loads(path.read_text("utf-8"))
            == json.loads(bill_of_materials(artifact.manifest, digest))
        )
    except (OSError, ValueError, RecursionError):
        return False


def _run(
    llm: LLM, artifact: Artifact, entry: EngineEntry, reference: Reference, timed: bool
) -> PlanResult:
    on_gpu = entry.nvidia is not None
    thresholds: Mapping[str, float] = artifact.manifest.recipe["conformance"][entry.precision]
    declared = llm.engine_info.batch_invariant
    try:
        report = judge(measure(llm, reference), thresholds, batch_invariant=declared)
        return PlanResult(on_gpu, report, measure_speed(llm, reference) if timed else None)
    except DeviceError as error:
        where = f"{artifact.path}, plan {llm.plan}: failed while it ran"
        raise DeviceError(f"{where}: {error}", error.code) from error


def _not_run(artifact: Artifact, entry: EngineEntry, error: Exception) -> PlanResult:
    found: Mapping[str, Any] = artifact.manifest.conformance.get(entry.plan, {})
    absent = isinstance(error, MissingDependencyError) or (
        isinstance(error, DeviceError) and error.code in _NO_GPU
    )
    return PlanResult(
        entry.nvidia is not None, reason=str(error), built=found.get("graph"), absent=absent
    )


def measure_speed(llm: LLM, reference: Reference) -> Speed:
    """Time an engine that has been warmed up by ``measure``.

    Each prompt is the reference's text rolled by another number of tokens, so that none finds its
    beginning in the cache.
    """
    decoded = max(1, min(_DECODED_TOKENS, llm.max_context // 4))
    length = min(reference.text_ids.shape[1], llm.max_context - decoded - 1)
    text = reference.text_ids[0]
    first, second = (np.roll(text, -shift)[:length].tolist() for shift in (1, 2))
    prefill = _seconds(llm, first, 1)
    whole = _seconds(llm, second, 1 + decoded)
    decode = max(whole - prefill, 1e-9)
    return Speed(length, length / prefill, decoded / decode)


def _seconds(llm: LLM, ids: list[int], tokens: int) -> float:
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    started = time.perf_counter()
    llm.generate(ids, params)
    return time.perf_counter() - started
