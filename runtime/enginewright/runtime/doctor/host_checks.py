"""What of the machine itself keeps a plan from running: platform, processor, memory."""

from __future__ import annotations

from collections.abc import Iterator

from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.cuda.memory import size_text
from enginewright.runtime.doctor.checks import fewer_rows, needs_text
from enginewright.runtime.doctor.facts import HostFacts
from enginewright.runtime.doctor.findings import Finding
from enginewright.runtime.doctor.needs import Needs
from enginewright.runtime.processor import without_vectors


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


def lacking(host: HostFacts) -> str | None:
    """What keeps our operators from the kernels that they have for processors; None if nothing."""
    return without_vectors(host.platform.rpartition("-")[2], host.features or frozenset())


def cpu_findings(entry: EngineEntry, host: HostFacts, needs: Needs) -> Iterator[Finding]:
    """Processor and memory of a plan for the CPU."""
    yield _features(entry, host)
    yield host_memory(needs, host)


def _features(entry: EngineEntry, host: HostFacts) -> Finding:
    reason = lacking(host)
    if reason is None:
        known = "; its features are not known" if host.features is None else ", with AVX2"
        return Finding("cpu_features", "ok", f"{host.processor}{known}")
    told = f"{host.processor}; {reason}"
    if entry.library is None:
        return Finding("cpu_features", "ok", f"{told}; this plan needs none of our operators")
    return Finding(
        "cpu_features",
        "warning",
        told,
        "x86-64 with AVX2, FMA and F16C for the operators' own kernels",
        f"they run in plain C++: a plan without them goes first, unless the build timed both on "
        f"this processor; plan={entry.plan!r} runs this one",
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
