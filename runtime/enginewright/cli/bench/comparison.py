"""Engines beside each other: medians, ratios, and whether they write what the model writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enginewright.cli.bench import machine
from enginewright.cli.bench.stats import Figure, figures_data
from enginewright.cli.bench.turns import Samples, remark
from enginewright.cli.bench.workload import Workload, figures
from enginewright.cli.text import table

OURS = "enginewright"


@dataclass(frozen=True)
class Comparison:
    """Samples by engine, ours first. ``expected``: the greedy tokens of the Hugging Face model
    for the workload's check prompts; empty where the artifact stores none.
    """

    name: str
    work: Workload
    taken: Mapping[str, Samples]
    expected: Sequence[Sequence[int]]

    @property
    def found(self) -> dict[str, list[Figure]]:
        return {name: figures(self.work, samples.used) for name, samples in self.taken.items()}

    def as_data(self) -> dict[str, Any]:
        """Plain data for --json."""
        return {
            "artifact": self.name,
            "threads": self.work.threads,
            "machine": machine.describe(),
            "engines": {name: figures_data(found) for name, found in self.found.items()},
            "ours_over_theirs": ratios(self.found),
            "greedy_agreement": self.agreement(),
            "disturbed_samples": {name: one.disturbed for name, one in self.taken.items()},
        }

    def page(self) -> Iterator[str]:
        """Lines for people."""
        where = machine.describe()
        yield f"{self.name}, {self.work.threads} threads, in turns; medians (least - most)"
        yield f"{where['processor']}, {where['cores']} cores\n"
        yield _table(self.found)
        yield ""
        for name, share in self.agreement().items():
            yield f"{name}: {share:.0%} of greedy tokens as the Hugging Face model's"
        yield from filter(None, (remark(name, one) for name, one in self.taken.items()))

    def agreement(self) -> dict[str, float]:
        """By engine, the share of greedy tokens up to each prompt's first difference."""
        if not self.expected:
            return {}
        total = sum(map(len, self.expected))
        return {
            name: sum(map(_common, one.used[0].said["checked"], self.expected)) / total
            for name, one in self.taken.items()
        }


def ratios(found: Mapping[str, Sequence[Figure]]) -> dict[str, dict[str, float]]:
    """Our median over the peer's, by peer and figure, where both have one."""
    ours = {figure.name: figure.median for figure in found[OURS]}
    return {
        name: {
            figure.name: ours[figure.name] / figure.median
            for figure in theirs
            if figure.name in ours and figure.median
        }
        for name, theirs in found.items()
        if name != OURS
    }


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first elements are equal."""
    pairs = enumerate(zip(one, other, strict=True))
    return next((at for at, (a, b) in pairs if a != b), len(one))


def _table(found: Mapping[str, Sequence[Figure]]) -> str:
    over = ratios(found)
    header, rows = ["measure", OURS], []
    for name in over:
        header += [name, "ours / theirs"]
    for figure in found[OURS]:
        row = [f"{figure.name} ({figure.unit})", figure.cell()]
        for name, ratio in over.items():
            theirs = [one for one in found[name] if one.name == figure.name]
            row.append(theirs[0].cell() if theirs else "")
            row.append(f"{ratio[figure.name]:.2f}x" if figure.name in ratio else "")
        rows.append(row)
    return table(header, rows)
