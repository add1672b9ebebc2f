"""What of two artifacts is a number: quality, size, cache. How much worse B is than A."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import EngineEntry
from enginewright.runtime.conformance import REFERENCE_FILE, Reference, measure_distance
from enginewright.runtime.doctor.needs import kv_bytes_per_token
from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.llm import LLM


@dataclass(frozen=True)
class Kind:
    """How a measure is compared; ``relative``: as a share of A's value."""

    unit: str
    more_is_better: bool = False
    relative: bool = True


QUALITY = {
    "perplexity": Kind(""),
    "mean_kl": Kind("nats", relative=False),
    "top1_agreement": Kind("", more_is_better=True, relative=False),
    "topk_agreement": Kind("", more_is_better=True, relative=False),
    "greedy_agreement": Kind("", more_is_better=True, relative=False),
}
COSTS = {"size": Kind("B"), "kv_bytes_per_token": Kind("B")}


@dataclass(frozen=True)
class Measure:
    """One number of each artifact. ``reason``: why one is missing, or what to know of them.

    ``plan``: of A's and B's plan, where it is a plan's; ``shown``: the values with their spread,
    where they were sampled.
    """

    name: str
    kind: Kind
    a: float | None
    b: float | None
    plan: str = ""
    reason: str = ""
    shown: tuple[str, str] | None = None

    @property
    def worse(self) -> float | None:
        """By how much B is worse; negative if it is better, None if that cannot be said."""
        if self.a is None or self.b is None:
            return None
        change = self.a - self.b if self.kind.more_is_better else self.b - self.a
        if not self.kind.relative:
            return change
        return change / self.a if self.a else (0.0 if change == 0 else float("inf"))

    def as_data(self) -> dict[str, Any]:
        """Plain data for --json."""
        return {
            "plan": self.plan,
            "unit": self.kind.unit,
            "a": self.a,
            "b": self.b,
            "worse": self.worse,
            "relative": self.kind.relative,
            "remark": self.reason,
        }


@dataclass(frozen=True)
class Plans:
    """``lost``: those of A that B has none of the name of; ``limits`` of plans that are paired:
    the plan's and the limit's name, the value of A and of B."""

    lost: tuple[str, ...] = ()
    limits: tuple[tuple[str, int, int], ...] = ()


def paired_plans(a: Artifact, b: Artifact) -> list[tuple[EngineEntry, EngineEntry]]:
    """The two preferred plans, which are what runs; then those of one name, in A's order."""
    theirs = {engine.plan: engine for engine in reversed(b.manifest.engines)}
    named = [(each, theirs[each.plan]) for each in a.manifest.engines if each.plan in theirs]
    preferred = a.manifest.engines[0], b.manifest.engines[0]
    return [preferred, *(pair for pair in named if pair != preferred)]


def plans(a: Artifact, b: Artifact) -> Plans:
    """What a gate has to know of the plans beside their measures."""
    held = {engine.plan for engine in b.manifest.engines}
    limits = [
        (f"{_pair_name(pair)}.{name}", value, getattr(pair[1].limits, name))
        for pair in paired_plans(a, b)
        for name, value in asdict(pair[0].limits).items()
    ]
    lost = [engine.plan for engine in a.manifest.engines if engine.plan not in held]
    return Plans(tuple(lost), tuple(limits))


def pair_name(a: str, b: str) -> str:
    """The plan's name, or both where they differ."""
    return a if a == b else f"{a} / {b}"


def costs(a: Artifact, b: Artifact) -> Iterator[Measure]:
    """Bytes on disk, and of cache."""
    yield Measure("size", COSTS["size"], a.manifest.total_bytes, b.manifest.total_bytes)
    name = "kv_bytes_per_token"
    for pair in paired_plans(a, b):
        ours, theirs = (kv_bytes_per_token(engine.kv) for engine in pair)
        yield Measure(name, COSTS[name], ours, theirs, _pair_name(pair))


def _pair_name(pair: tuple[EngineEntry, EngineEntry]) -> str:
    return pair_name(pair[0].plan, pair[1].plan)


def quality(a: Artifact, b: Artifact) -> list[Measure]:
    """Of each pair of plans, as the builds measured it."""
    told = [_built(a), _built(b)]
    return [m for pair in paired_plans(a, b) for m in _compared(a, b, pair, told)]


def scored(
    a: Artifact, b: Artifact, *, threads: int | None, allow_native_code: bool | None
) -> list[Measure]:
    """The same, measured here and now by running both; they must have one reference.

    Raises EnginewrightError where they have not, or an engine does not run here.
    """
    digests = {each.manifest.files[REFERENCE_FILE].sha256 for each in (a, b)}
    if len(digests) > 1:
        raise EnginewrightError(
            f"--score: {a.path} and {b.path} were held to different references (another model, "
            f"tokenizer or context), so that one score says nothing of both; leave --score out"
        )
    reference = Reference.load(a.file(REFERENCE_FILE))
    told: list[dict[str, Mapping[str, float]]] = [{}, {}]
    for pair in paired_plans(a, b):
        for artifact, engine, measures in zip((a, b), pair, told, strict=True):
            if engine.plan in measures:
                continue
            with LLM(
                artifact.path,
                plan=engine.plan,
                threads=threads,
                allow_native_code=allow_native_code,
                generation_config="vllm",
            ) as llm:
                measures[engine.plan] = asdict(measure_distance(llm, reference))
    return [m for pair in paired_plans(a, b) for m in _compared(a, b, pair, told)]


def _built(artifact: Artifact) -> dict[str, Mapping[str, float]]:
    found = artifact.manifest.conformance
    return {plan: report["measures"] for plan, report in found.items()}


def _compared(
    a: Artifact,
    b: Artifact,
    pair: tuple[EngineEntry, EngineEntry],
    told: list[dict[str, Mapping[str, float]]],
) -> Iterator[Measure]:
    own, same_text = _remark(a, b)
    for name, kind in QUALITY.items():
        found = [
            each.get(engine.plan, {}).get(name) for each, engine in zip(told, pair, strict=True)
        ]
        reason = own if None not in found else "the build of one did not measure it"
        if name == "perplexity" and not same_text:
            found, reason = [None, None], "the two were measured on different tokens"
        yield Measure(name, kind, found[0], found[1], _pair_name(pair), reason)


def _remark(a: Artifact, b: Artifact) -> tuple[str, bool]:
    """What to know of the references, and whether they have the same text as token ids."""
    files = [each.manifest.files.get(REFERENCE_FILE) for each in (a, b)]
    if None in files:
        return "", files[0] == files[1]
    if files[0] == files[1]:
        return "", True
    ours, theirs = (Reference.load(each.file(REFERENCE_FILE)).text_ids for each in (a, b))
    return "each against its own model", bool(np.array_equal(ours, theirs))
