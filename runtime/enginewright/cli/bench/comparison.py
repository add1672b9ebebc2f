"""Engines beside each other: what each work took, and how many times better the best of ours is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from enginewright.cli.bench import machine
from enginewright.cli.bench.quality import Quality
from enginewright.cli.bench.stats import Figure, figures_data
from enginewright.cli.bench.turns import DISTURBED, Samples
from enginewright.cli.bench.works import Work
from enginewright.cli.text import number, table


@dataclass(frozen=True)
class Entrant:
    """One engine with one model. ``weights``: their bytes; ``quality`` None: not measured."""

    label: str
    ours: bool
    weights: int
    quality: Quality | None = None

    @property
    def grade(self) -> str:
        return "" if self.quality is None else self.quality.grade

    @property
    def lossy(self) -> bool:
        return self.quality is not None and not self.quality.near_lossless


@dataclass(frozen=True)
class Result:
    """One work: a figure of each entrant that did it, by label."""

    work: Work
    entrants: Mapping[str, Entrant]
    figures: Mapping[str, Figure]

    def best(self, *, ours: bool, lossy: bool = False) -> str | None:
        """The label of the best median on one side, among those that lose no quality."""
        found = [
            label
            for label in self.figures
            if self.entrants[label].ours == ours and self.entrants[label].lossy == lossy
        ]
        pick = max if self.work.more_is_better else min
        return pick(found, key=lambda label: self.figures[label].median) if found else None

    @property
    def graded(self) -> bool:
        """Whether the quality of any entrant was measured; without it all count as one class."""
        return any(entrant.quality is not None for entrant in self.entrants.values())

    def leads(self) -> dict[str, float]:
        """By peer: how many times better the best of ours is."""
        ours = self.best(ours=True)
        if ours is None:
            return {}
        mine = self.figures[ours].median
        return {
            label: self.work.ratio(mine, figure.median)
            for label, figure in self.figures.items()
            if not self.entrants[label].ours
        }

    def as_data(self) -> dict[str, Any]:
        """Plain data for --json."""
        return {
            "title": self.work.title,
            "engines": figures_data(list(self.figures.values())),
            "best_of_ours": self.best(ours=True),
            "best_peer": self.best(ours=False),
            "peers_in_class": "near-lossless" if self.graded else "quality not measured",
            "times_better": self.leads(),
        }


@dataclass(frozen=True)
class Comparison:
    """All results. ``absent``: engines that were not measured, by label, and why."""

    name: str
    threads: int
    entrants: Mapping[str, Entrant]
    works: Mapping[str, Work]
    taken: Mapping[str, Mapping[str, Samples]]
    """By work and label."""
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def results(self) -> list[Result]:
        return [self._result(self.works[name], taken) for name, taken in self.taken.items()]

    def as_data(self) -> dict[str, Any]:
        """Plain data for --json."""
        return {
            "model": self.name,
            "threads": self.threads,
            "machine": machine.describe(),
            "quality": {e.label: e.quality.as_data() for e in self.entrants.values() if e.quality},
            "works": {result.work.name: result.as_data() for result in self.results},
            "not_measured": dict(self.absent),
            "disturbed_samples": {
                work: {label: one.disturbed for label, one in taken.items()}
                for work, taken in self.taken.items()
            },
        }

    def page(self) -> Iterator[str]:
        """Lines for people."""
        where = machine.describe()
        yield f"{self.name}, {self.threads} threads, in turns; medians (least - most)"
        yield f"{where['processor']}, {where['cores']} cores"
        if any(entrant.quality for entrant in self.entrants.values()):
            yield f"\n{quality_table(self.entrants)}"
        for result in self.results:
            yield f"\n{result_table(result)}"
        if self.results:
            yield f"\n{summary(self.results)}"
        yield from (f"not measured: {name}: {why}" for name, why in self.absent.items())
        for work, taken in self.taken.items():
            if disturbed := [label for label, one in taken.items() if one.noisy]:
                yield (
                    f"{self.works[work].title}: too few samples in which other processes took less "
                    f"than {DISTURBED:.0%} of the machine; all are kept of {', '.join(disturbed)}"
                )

    def _result(self, work: Work, taken: Mapping[str, Samples]) -> Result:
        figures = {}
        for label, samples in taken.items():
            weights = self.entrants[label].weights
            values = tuple(work.figure(one, weights) for one in samples.used)
            figures[label] = Figure(label, work.unit, values)
        return Result(work, self.entrants, figures)


def quality_table(entrants: Mapping[str, Entrant]) -> str:
    rows = [
        (
            entrant.label,
            f"{entrant.quality.top1:.3f}",
            f"{entrant.quality.perplexity:.3f}",
            f"{entrant.quality.increase:+.2%}",
            entrant.grade,
        )
        for entrant in entrants.values()
        if entrant.quality is not None
    ]
    return table(("quality", "top-1", "perplexity", "change", "class"), rows)


def result_table(result: Result) -> str:
    leads = result.leads()
    rows = [
        (
            label,
            result.entrants[label].grade,
            figure.cell(),
            f"{leads[label]:.2f}x" if label in leads else "",
        )
        for label, figure in result.figures.items()
    ]
    return table((result.work.title, "class", result.work.unit, "the best of ours is better"), rows)


def summary(results: list[Result]) -> str:
    """One line a work: the best of ours beside the best peer of the same class."""
    rows = []
    for result in results:
        ours, theirs = result.best(ours=True), result.best(ours=False)
        lead = f"{result.leads()[theirs]:.2f}x" if ours and theirs else ""
        named = [_named(result, label) for label in (ours, theirs)]
        rows.append((f"{result.work.title} ({result.work.unit})", *named, lead))
    graded = any(result.graded for result in results)
    among = "near-lossless only" if graded else "quality not measured"
    return table((among, "best of ours", "best of the peers", "better"), rows)


def _named(result: Result, label: str | None) -> str:
    return "none" if label is None else f"{number(result.figures[label].median)}, {label}"
