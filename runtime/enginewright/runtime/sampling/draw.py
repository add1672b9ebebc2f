"""Draws from a row of weights, by numbers that depend on seed, index and step alone.

| tensor  | shape | dtype   | meaning                              |
|---------|-------|---------|--------------------------------------|
| weights | [K]   | float32 | probabilities that need not sum to 1 |
"""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

_BLOCK = 512


class RandomStream:
    """A counter-based generator: the number of a step is the same whatever else runs.

    ``seed`` None takes fresh entropy. Streams of one seed and different ``index`` (the outputs of
    one prompt) are independent.
    """

    def __init__(self, seed: int | None, index: int = 0) -> None:
        first = secrets.randbits(64) if seed is None else seed % 2**64
        self._key = np.array([first, index], np.uint64)

    def uniform(self, step: int) -> float:
        """A number in [0, 1)."""
        # The step is the counter's second word: 2**64 draws of each step are free for later use.
        bits = np.random.Philox(key=self._key, counter=[0, step, 0, 0]).random_raw()
        return float(int(bits) >> 11) * 2.0**-53


def draw(weights: NDArray[np.float32], uniform: float) -> int:
    """The position where the running sum of the weights passes ``uniform`` of their total.

    Sums of blocks are formed first: a running sum over a whole vocabulary is ten times slower.
    """
    starts = np.arange(0, weights.size, _BLOCK)
    sums = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    goal = uniform * float(sums[-1])
    block = int(np.searchsorted(sums, goal, side="right"))
    if block == sums.size:  # the product was rounded up to the total
        return int(np.flatnonzero(weights)[-1])
    before = float(sums[block - 1]) if block else 0.0
    inside = weights[starts[block] : starts[block] + _BLOCK]
    index = int(np.searchsorted(np.cumsum(inside, dtype=np.float64), goal - before, side="right"))
    # Where rounding passes the block's end, the block's last possible token is the one.
    index = min(index, int(np.flatnonzero(inside)[-1]))
    return int(starts[block]) + index
