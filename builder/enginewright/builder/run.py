"""One build as it goes: tells of each stage, and keeps what it took for evidence/."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from enginewright.builder.cache import Decision, StageCache
from enginewright.builder.memory import StageMeter

Progress = Callable[[str], None]


class Run:
    """Tells of each stage and notes what it took; ``cache`` is what the stages are taken from."""

    def __init__(self, progress: Progress, explain: Progress | None = None) -> None:
        self.progress = progress
        self._explain = explain
        self.cache = StageCache(progress)
        self.stages: dict[str, dict[str, Any]] = {}
        self.peak = 0

    def another(self) -> Run:
        """For another artifact, told to the same."""
        return Run(self.progress, self._explain)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Meter what is done inside, and tell."""
        self.progress(f"{name} ...")
        met = len(self.cache.decisions)
        with StageMeter() as meter:
            yield
        decisions = self.cache.decisions[met:]
        if self._explain is not None:
            for decision in decisions:
                self._explain(str(decision))
        self.peak = max(self.peak, meter.anonymous_peak)
        self.stages[name] = {
            "seconds": round(meter.seconds, 3),
            "anonymous_growth_bytes": meter.anonymous_growth,
            "anonymous_peak_bytes": meter.anonymous_peak,
            "cached": bool(decisions) and all(each.hit for each in decisions),
        }
        grown = meter.anonymous_growth / 1e6
        self.progress(
            f"{name}{_taken(decisions)}: {meter.seconds:.1f} s, "
            f"peak anonymous memory +{grown:.0f} MB"
        )

    def happened(self) -> Mapping[str, Any]:
        """What evidence/build.json says of it."""
        return {
            "stages": self.stages,
            "seconds": round(sum(stage["seconds"] for stage in self.stages.values()), 3),
            "anonymous_peak_bytes": self.peak,
            "cache": [vars(decision) for decision in self.cache.decisions],
        }


def _taken(decisions: Sequence[Decision]) -> str:
    hits = [each.hit for each in decisions]
    return " (from the cache)" if hits and all(hits) else ""
