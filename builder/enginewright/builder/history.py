"""How long past builds took on this machine, and what that says of the next one.

    <user's cache>/enginewright/builds.jsonl    a line a build: target, precision, size, seconds
                                                of each stage that was not taken from the cache

A stage's time is a line over the model's parameters (of an export, over its layers), fitted to the
builds for the same target by least squares. The error is what the fit would have missed each of
these builds by, had it not been among them.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from enginewright.builder.run import Run
from enginewright.runtime.artifact.integrity import cache_folder
from enginewright.runtime.processor import processor_name

STAGES = ("export", "reference", "compile", "conformance")
_KEPT = 200
_ANY_TARGET = ("export", "reference")


@dataclass(frozen=True)
class BuildSize:
    """What the times of a build depend on."""

    target: str
    precision: str
    parameters: int
    layers: int


@dataclass(frozen=True)
class Past:
    """One build: ``seconds`` of the stages that ran."""

    size: BuildSize
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds of a stage, the error of the estimate, and how many builds it rests on."""

    seconds: float
    error: float | None
    builds: int


def remember_build(size: BuildSize, run: Run) -> None:
    """Add a build to the records; a cache that cannot be written costs only an estimate."""
    seconds = {
        name: stage["seconds"]
        for name, stage in run.stages.items()
        if name in STAGES and not stage["cached"]
    }
    path = _records()
    if path is None or not seconds:
        return
    line = {"processor": processor_name(), **asdict(size), "seconds": seconds}
    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")  # one write: builds at once do not mix lines


def past_builds() -> list[Past]:
    """Those on a processor like this one, the latest last."""
    path = _records()
    try:
        lines = [] if path is None else path.read_text("utf-8").splitlines()
    except OSError:
        return []
    return [past for line in lines[-_KEPT:] for past in _parsed(line)]


def estimate_times(size: BuildSize, past: Sequence[Past]) -> dict[str, TimeEstimate]:
    """By stage; those of which nothing is known are left out."""
    found = {}
    for stage in STAGES:
        points = [
            (_work(stage, each.size), each.seconds[stage])
            for each in past
            if stage in each.seconds and _alike(stage, each.size, size)
        ]
        if points:
            at = _work(stage, size)
            found[stage] = TimeEstimate(_Line(points)(at), _error(points), len(points))
    return found


def _work(stage: str, size: BuildSize) -> float:
    return float(size.layers if stage == "export" else size.parameters)


def _alike(stage: str, past: BuildSize, size: BuildSize) -> bool:
    if stage in _ANY_TARGET:
        return True
    return (past.target, past.precision) == (size.target, size.precision)


class _Line:
    """Seconds over work, by least squares; never less than 0, never falling."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        count = len(points)
        mean_work = sum(work for work, _ in points) / count
        mean = sum(seconds for _, seconds in points) / count
        spread = sum((work - mean_work) ** 2 for work, _ in points)
        slope = 0.0
        if spread > 0:
            slope = sum((w - mean_work) * (s - mean) for w, s in points) / spread
        elif mean_work:
            slope = mean / mean_work  # one size is known: in proportion
        slope = max(slope, 0.0)
        if mean - slope * mean_work < 0:
            slope = sum(w * s for w, s in points) / sum(w * w for w, _ in points)
            mean_work = mean = 0.0
        self._slope, self._at, self._seconds = slope, mean_work, mean

    def __call__(self, work: float) -> float:
        return self._seconds + self._slope * (work - self._at)


def _error(points: Sequence[tuple[float, float]]) -> float | None:
    """Root mean square of what each point is missed by when the others are fitted."""
    if len(points) < 2:
        return None
    missed = [
        _Line([*points[:at], *points[at + 1 :]])(work) - seconds
        for at, (work, seconds) in enumerate(points)
    ]
    return math.sqrt(sum(each * each for each in missed) / len(missed))


def _parsed(line: str) -> Iterator[Past]:
    try:
        data = json.loads(line)
        if data.pop("processor") == processor_name():
            seconds = {str(name): float(value) for name, value in data.pop("seconds").items()}
            yield Past(BuildSize(**data), seconds)
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # a line of another version, or cut off


def _records() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "builds.jsonl"
