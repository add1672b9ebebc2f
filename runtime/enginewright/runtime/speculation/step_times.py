"""What steps take: plain ones by their rows, all by the positions that they compute.

Measured, and never assumed. A step of one row at eight positions is no plain step of eight rows,
whose pasts are others.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable

FRESH = 128
"""Steps after which a time is too old: rows have grown, or the machine does something else."""

KEPT, ENOUGH = 15, 3
"""Times that are kept of each size, and those without which a plain step's is not relied on."""

Taken = deque[tuple[int, float]]
"""The number of a step, and its seconds."""


class StepTimes:
    """Medians of the last times, in seconds. Positions are rows times the tokens of the widest."""

    def __init__(self) -> None:
        self._plain: dict[int, Taken] = {}
        self._taken: dict[int, Taken] = {}
        self._now = 0
        self._medians: dict[int, float] | None = None

    def note(self, rows: int, width: int, seconds: float) -> None:
        """A step ran, of so many rows and tokens of the widest."""
        self._now += 1
        self._medians = None
        one = (self._now, seconds)
        self._taken.setdefault(rows * width, deque(maxlen=KEPT)).append(one)
        if width == 1:
            self._plain.setdefault(rows, deque(maxlen=KEPT)).append(one)

    def plain(self, rows: int) -> float | None:
        """Of steps of one token a row; None if too few ran lately."""
        times = self._fresh(self._plain.get(rows, ()))
        return _median(times) if len(times) >= ENOUGH else None

    def forget_plain(self) -> None:
        """Rows have joined: what steps took without them says nothing of those that have them."""
        self._plain = {}

    def expected(self, positions: int) -> float | None:
        """Between the sizes that ran lately; None if it is over twice as large as any of them.

        One larger than all is taken to cost as much as the largest: too little, so that it is tried
        once. What two rows cost says little of four: kernels work on several at a time.
        """
        medians = self._known()
        known = list(medians)
        if not known or positions > 2 * known[-1]:
            return None
        place = bisect_left(known, positions)
        if place == len(known) or known[place] == positions or place == 0:
            return medians[known[min(place, len(known) - 1)]]
        below, above = known[place - 1], known[place]
        low, high = medians[below], medians[above]
        return low + (high - low) * (positions - below) / (above - below)

    def _known(self) -> dict[int, float]:
        """The medians by size, ascending."""
        if self._medians is None:
            fresh = {size: self._fresh(self._taken[size]) for size in sorted(self._taken)}
            self._medians = {size: _median(each) for size, each in fresh.items() if each}
            self._taken = {size: self._taken[size] for size in self._medians}
        return self._medians

    def _fresh(self, taken: Iterable[tuple[int, float]]) -> list[float]:
        return [seconds for at, seconds in taken if self._now - at < FRESH]


def _median(values: list[float]) -> float:
    """As that of the module statistics, which would take 5 ms of every start."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2
