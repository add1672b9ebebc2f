"""What of the machine itself keeps a plan from running: platform, processor, memory."""

from __future__ import annotations

from collections.abc import Iterator

from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.cuda.memory import size_text
from enginewright.runtime.doctor.checks import fewer_rows, needs_text
from enginewright.runtime.doctor.facts import HostFacts
from enginewright.runtime.doctor.findings import Finding
from enginewright.runtime.doctor.needs import Needs

_FAST = "avx2"


def platform_finding(entry: EngineEntry, host: HostFacts) -> Finding:
    """Whether the plan's files are for this system."""
    if entry.platform in (None, host.platform):
        shown = host.platform if entry.platform else f"any; this machine is {host.platform}"
        return Finding("platform", "ok", shown)
    return Finding(
        "platform",
        "problem",
        f"this machine is {host.platform}",
        entry.platform or "",
        "build the artifact on such a machine",
    )


def cpu_findings(host: HostFacts, needs: Needs) -> Iterator[Finding]:
    """Processor and memory of a plan for the CPU."""
    yield _features(host)
    yield host_memory(needs, host)


def _features(host: HostFacts) -> Finding:
    if host.features is None:
        return Finding("cpu_features", "ok", f"{host.processor}; its features are not known")
    if _FAST in host.features:
        return Finding("cpu_features", "ok", f"{host.processor}, with AVX2")
    return Finding(
        "cpu_features",
        "warning",
        f"{host.processor}, without AVX2",
        "AVX2 for the fast kernels",
        "it runs, slower",
    )


def host_memory(needs: Needs, host: HostFacts) -> Finding:
    """Whether the process's memory holds the weights, and the cache of all rows.

    The cache takes memory as rows grow: too little for all of them is only a warning.
    """
    available = host.available_bytes
    if available is None:
        return Finding("host_memory", "warning", "free memory is not known", needs_text(needs))
    found = f"{size_text(available)} for this process"
    if needs.total <= available:
        return Finding("host_memory", "ok", f"{found}; needs up to {needs_text(needs)}")
    starts = needs.of(1) <= available
    return Finding(
        "host_memory",
        "warning" if starts else "problem",
        found,
        f"up to {needs_text(needs)}",
        fewer_rows(needs, available),
    )
