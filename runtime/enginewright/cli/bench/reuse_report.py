"""What ``bench reuse`` says: the times with and without the cache, and a step of each search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enginewright.cli.bench import machine
from enginewright.cli.bench.children import Sample
from enginewright.cli.bench.stats import Figure, figures_data
from enginewright.cli.bench.turns import Samples, remark
from enginewright.cli.text import table

ON, OFF, BEAMS = "cache on", "cache off", "beams"


@dataclass(frozen=True)
class Report:
    """Samples by ON, OFF and BEAMS. ``searches``: the fields of each search, as they were run."""

    name: str
    threads: int
    prompts: int
    turns: int
    searches: Sequence[Mapping[str, Any]]
    taken: Mapping[str, Samples]

    @property
    def reuse(self) -> dict[str, list[Figure]]:
        return {n: prompt_figures(self.prompts, self.turns, self.taken[n].used) for n in (ON, OFF)}

    @property
    def beams(self) -> dict[str, list[Figure]]:
        return {
            f"{search['algorithm']}, {search['beam_width']} beams": beam_figures(
                [one.said["searches"][at] for one in self.taken[BEAMS].used]
            )
            for at, search in enumerate(self.searches)
        }

    def as_data(self) -> dict[str, Any]:
        """Plain data for --json."""
        return {
            "artifact": self.name,
            "threads": self.threads,
            "machine": machine.describe(),
            "reuse": {name: figures_data(found) for name, found in self.reuse.items()},
            "off_over_on": ratios(self.reuse),
            "beams": {name: figures_data(found) for name, found in self.beams.items()},
            "disturbed_samples": {name: one.disturbed for name, one in self.taken.items()},
        }

    def page(self) -> Iterator[str]:
        """Lines for people."""
        where = machine.describe()
        yield f"{self.name}, {self.threads} threads, in turns; medians (least - most)"
        yield f"{where['processor']}, {where['cores']} cores\n"
        yield reuse_table(self.reuse)
        yield ""
        yield beam_table(self.beams)
        yield from filter(None, (remark(name, one) for name, one in self.taken.items()))


def prompt_figures(prompts: int, turns: int, samples: Sequence[Sample]) -> list[Figure]:
    names = {
        "prompts_s": f"{prompts} prompts",
        "greedy_s": f"first tokens of {turns} turns, greedy",
        "sampled_s": f"first tokens of {turns} turns, sampled",
    }
    return [Figure(n, "s", tuple(one.said[key] for one in samples)) for key, n in names.items()]


def beam_figures(said: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """What one step of a search takes, and the copies of the prompt; one mapping a sample."""
    rows = [list(_beam_step(one)) for one in said]
    return [
        Figure(name, unit, tuple(row[place][2] for row in rows))
        for place, (name, unit, _) in enumerate(rows[0])
    ]


def _beam_step(said: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    steps, copies = said["steps"], said["copies"]
    whole = said["engine_s"] + said["copy_s"] + said["host_s"]
    yield "engine", "ms", said["engine_s"] / steps * 1e3
    yield "cache copies", "ms", said["copy_s"] / steps * 1e3
    yield "host", "ms", said["host_s"] / steps * 1e3
    yield "share of cache copies", "%", said["copy_s"] / whole * 100
    yield "copies", "a step", copies / steps
    yield "tokens", "a copy", said["tokens"] / copies if copies else 0.0
    yield "moved", "kB a step", said["tokens"] * said["token_bytes"] / steps / 1e3
    yield "the prompt's copies", "ms, once", said["fork_s"] * 1e3


def ratios(found: Mapping[str, Sequence[Figure]]) -> dict[str, float]:
    """The median without the cache over that with it."""
    pairs = zip(found[ON], found[OFF], strict=True)
    return {on.name: off.median / on.median for on, off in pairs}


def reuse_table(found: Mapping[str, Sequence[Figure]]) -> str:
    over = ratios(found)
    rows = [
        (f"{on.name} ({on.unit})", on.cell(), off.cell(), f"{over[on.name]:.2f}x")
        for on, off in zip(found[ON], found[OFF], strict=True)
    ]
    return table(("measure", ON, OFF, "off / on"), rows)


def beam_table(beams: Mapping[str, Sequence[Figure]]) -> str:
    lines = zip(*beams.values(), strict=True)
    rows = [(f"{line[0].name} ({line[0].unit})", *(one.cell() for one in line)) for line in lines]
    return table(("of a step", *beams), rows)
