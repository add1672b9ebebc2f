"""The whole answer: what was found of the artifact and of each plan, and which plan would run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.artifact.native_code import objection
from enginewright.runtime.backends import BACKENDS
from enginewright.runtime.doctor.artifact_checks import artifact_findings
from enginewright.runtime.doctor.checks import (
    device_findings,
    driver_findings,
    package_findings,
    plugin_abi,
)
from enginewright.runtime.doctor.facts import DriverFacts, HostFacts, Installed
from enginewright.runtime.doctor.findings import Finding
from enginewright.runtime.doctor.header import engine_header
from enginewright.runtime.doctor.host_checks import cpu_findings, lacking, platform_finding
from enginewright.runtime.doctor.kernels import kernel_capabilities
from enginewright.runtime.doctor.needs import needs
from enginewright.runtime.doctor.requirements import version_compatible
from enginewright.runtime.options import EngineOptions
from enginewright.runtime.plans import preferred

_OF_THIS_MACHINE = frozenset(
    {"package_missing", "library_version", "platform", "untrusted_code", "host_memory"}
)
"""Where a device was described, these say nothing of the machine that it is in."""


@dataclass(frozen=True)
class Machine:
    """Where the artifact would run."""

    driver: DriverFacts
    host: HostFacts
    installed: Installed


@dataclass(frozen=True)
class PlanReport:
    """What was found of one plan."""

    target: str
    plan: str
    precision: str
    for_gpu: bool
    findings: tuple[Finding, ...]

    @property
    def runs(self) -> bool:
        return not self.problems

    @property
    def problems(self) -> tuple[Finding, ...]:
        return tuple(each for each in self.findings if each.status == "problem")


@dataclass(frozen=True)
class Diagnosis:
    """What was found, the artifact's own findings first, then each plan's.

    Plans come in the order in which a load tries them.

    ``chosen``: the plan that a load takes; None if none runs.
    """

    described: bool
    findings: tuple[Finding, ...]
    plans: tuple[PlanReport, ...]

    @property
    def chosen(self) -> PlanReport | None:
        """As plans.open_plan takes them: the first that runs."""
        if any(finding.status == "problem" for finding in self.findings):
            return None
        return next((plan for plan in self.plans if plan.runs), None)

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        chosen = self.chosen
        return {
            "runs": chosen is not None,
            "plan": chosen.plan if chosen is not None else None,
            "described_device": self.described,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "plans": [
                {
                    "target": plan.target,
                    "plan": plan.plan,
                    "precision": plan.precision,
                    "runs": plan.runs,
                    "findings": [dataclasses.asdict(finding) for finding in plan.findings],
                }
                for plan in self.plans
            ],
        }


def diagnose(folder: Path, machine: Machine, options: EngineOptions) -> Diagnosis:
    """Ask every check that there is. Raises ArtifactNotFoundError, and EnginewrightError for
    limits above those that were built."""
    artifact, findings = artifact_findings(folder)
    if artifact is None:
        return Diagnosis(machine.driver.described, tuple(findings), ())
    whole = all(finding.status == "ok" for finding in findings)
    plans = tuple(
        _plan(artifact, options.lowered(entry), machine, options.allow_native_code, whole)
        for entry in preferred(
            artifact.manifest.engines,
            artifact.manifest.tuning,
            machine.host.processor,
            vectors=lacking(machine.host) is None,
        )
    )
    return Diagnosis(machine.driver.described, tuple(findings), plans)


def _plan(
    artifact: Artifact, entry: EngineEntry, machine: Machine, allow: bool | None, whole: bool
) -> PlanReport:
    findings = _plan_findings(artifact, entry, machine, allow, whole)
    if machine.driver.described and entry.nvidia is not None:
        findings = map(_of_another_machine, findings)
    for_gpu = entry.nvidia is not None
    return PlanReport(entry.target, entry.plan, entry.precision, for_gpu, tuple(findings))


def _plan_findings(
    artifact: Artifact, entry: EngineEntry, machine: Machine, allow: bool | None, whole: bool
) -> Iterator[Finding]:
    if entry.target not in BACKENDS:
        yield Finding(
            "unknown_target",
            "problem",
            entry.target,
            f"one of {', '.join(BACKENDS)}",
            "install a newer enginewright, or build the model for one of those",
        )
        return
    yield Finding("unknown_target", "ok", entry.target)
    place = platform_finding(entry, machine.host)
    yield place
    if place.status == "ok":
        yield _native_code(artifact, entry, allow)
    compatible = version_compatible(artifact.manifest)
    yield from package_findings(entry, machine.installed, version_compatible=compatible)
    takes = needs(entry, artifact.manifest.files)
    if entry.nvidia is None:
        yield from cpu_findings(entry, machine.host, takes)
        return
    if not machine.driver.described:
        yield from driver_findings(entry.nvidia, machine.driver, machine.installed)
    for plugin in entry.nvidia.plugins:
        yield plugin_abi(plugin, machine.installed)
    if whole and entry.nvidia.library == "tensorrt_rtx":
        yield engine_header(artifact.path / entry.model, entry.nvidia)
    if whole and machine.driver.devices:
        kernels = kernel_capabilities(artifact.path, entry.nvidia)
        yield from device_findings(entry.nvidia, machine.driver.devices[0], takes, kernels)


def _native_code(artifact: Artifact, entry: EngineEntry, allow: bool | None) -> Finding:
    reason = objection(artifact, entry, allow)
    if reason is None:
        return Finding("untrusted_code", "ok", "may run, or there is none")
    return Finding("untrusted_code", "problem", reason)


def _of_another_machine(finding: Finding) -> Finding:
    """A problem of this machine is none of the one that has the described device."""
    if finding.status != "problem" or finding.code not in _OF_THIS_MACHINE:
        return finding
    found = f"on this machine, which is not the device's: {finding.found}"
    return dataclasses.replace(finding, status="warning", found=found)
