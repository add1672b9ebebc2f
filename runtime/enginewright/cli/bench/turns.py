"""How many samples are taken: enough clean ones, engines in turns, disturbed ones left out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import click

from enginewright.cli.bench.children import Sample

DISTURBED = 0.05
"""A sample is left out when other processes took more than this share of the machine."""
ATTEMPTS = 2
"""At most this many times the wanted samples are taken."""

Take = Callable[[], Sample]


@dataclass(frozen=True)
class Samples:
    """Clean samples of one engine, or all of them where too few were clean."""

    used: Sequence[Sample]
    disturbed: int
    """How many samples were disturbed; they are among ``used`` only if ``noisy``."""
    noisy: bool


def take_turns(takes: Mapping[str, Take], runs: int, label: str) -> dict[str, Samples]:
    """Sample each engine in turns, A B A B, until each has ``runs`` clean samples.

    A bar on stderr shows the progress, in a terminal only.
    """
    taken: dict[str, list[Sample]] = {name: [] for name in takes}
    with click.progressbar(
        length=runs * len(takes), label=label, file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        for turn in range(ATTEMPTS * runs):
            if all(len(_clean(samples)) >= runs for samples in taken.values()):
                break
            for name, take in takes.items():
                taken[name].append(take())
                bar.update(1 if turn < runs else 0)
    return {name: _chosen(samples, runs) for name, samples in taken.items()}


def _clean(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.disturbance <= DISTURBED]


def _chosen(samples: Sequence[Sample], runs: int) -> Samples:
    clean = _clean(samples)
    disturbed = len(samples) - len(clean)
    enough = len(clean) >= runs
    return Samples(clean if enough else samples, disturbed, noisy=not enough)


def remark(name: str, samples: Samples) -> str | None:
    """What a reader must know of how the samples were taken; None if all were clean."""
    if not samples.disturbed:
        return None
    fate = "kept, too few were clean" if samples.noisy else "left out"
    return (
        f"{name}: {samples.disturbed} samples in which other processes took over "
        f"{DISTURBED:.0%} of the machine ({fate})"
    )
