"""Samples of one figure, and what is said of them: median, least, most."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from enginewright.cli.text import number

SHARES = (50, 90, 99)
"""The percentiles that are told of many times."""


@dataclass(frozen=True)
class Figure:
    """One measured quantity over several samples."""

    name: str
    unit: str
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def cells(self) -> tuple[str, str, str]:
        """The row of a table: name and unit, median, least and most."""
        low, high = number(min(self.samples)), number(max(self.samples))
        return f"{self.name} ({self.unit})", number(self.median), f"{low} - {high}"

    def cell(self) -> str:
        """The same without name and unit, for a table with a column for each of several."""
        _, median, spread = self.cells()
        return f"{median} ({spread})"

    def as_data(self) -> dict[str, Any]:
        """Plain data for --json."""
        return {
            "unit": self.unit,
            "median": self.median,
            "min": min(self.samples),
            "max": max(self.samples),
            "samples": list(self.samples),
        }


def shares_of(name: str, seconds: Sequence[Sequence[float]]) -> list[Figure]:
    """Percentiles in milliseconds of the times of each sample; without times, none."""
    told = [times for times in seconds if times]
    return [
        Figure(f"{name}, p{share}", "ms", tuple(float(np.percentile(t, share)) * 1e3 for t in told))
        for share in SHARES
        if told
    ]


HEADER = ("measure", "median", "min - max")


def figures_data(figures: Sequence[Figure]) -> dict[str, Any]:
    """Figures by name, as plain data."""
    return {figure.name: figure.as_data() for figure in figures}
