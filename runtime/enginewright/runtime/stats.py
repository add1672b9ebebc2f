"""How a running engine stands."""

from __future__ import annotations

from dataclasses import dataclass


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
