"""How a running engine stands."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True)
class Distribution:
    """How often a number was at most each bound and above the one before; last, above them all."""

    bounds: tuple[int, ...]
    counts: tuple[int, ...]
    total: int
    """The sum of the numbers."""


class Tally:
    """A distribution in the making."""

    def __init__(self, bounds: Sequence[int]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0

    def add(self, number: int) -> None:
        """Count it."""
        self._counts[bisect_left(self._bounds, number)] += 1
        self._total += number

    def read(self) -> Distribution:
        """As it stands."""
        return Distribution(self._bounds, tuple(self._counts), self._total)


@dataclass(frozen=True)
class EngineStats:
    """At one moment, between two steps. A row is one output on its way, or one beam."""

    running: int = 0
    """Rows that have room in the cache."""
    waiting: int = 0
    """Rows that wait for it."""
    cache_usage: float = 0.0
    """The part of the cache's room that running rows hold, 0 to 1."""
    preemptions: int = 0
    """How often a row gave up its room since the start."""
    step_tokens: Distribution = field(default_factory=lambda: Tally(STEP_TOKENS).read())
    """Tokens that a step computed, of prompts, outputs and drafts, since the start."""
