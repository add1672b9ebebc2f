"""How often each token is in an output, kept up to date as the output grows.

u different tokens so far.

| tensor | shape | dtype   | meaning                                    |
|--------|-------|---------|--------------------------------------------|
| ids    | [u]   | int64   | the tokens, each once, as they first came  |
| counts | [u]   | float32 | how often each is there                    |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from enginewright.runtime.sampling.processors import Ids, Logits


class Tally:
    """Counts one output; each look at it costs what is new in it."""

    def __init__(self) -> None:
        self._output: Sequence[int] = ()
        self._counted = 0
        self._places: dict[int, int] = {}
        self._ids = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.float32)

    def of(self, output: Sequence[int]) -> tuple[Ids, Logits]:
        """``ids`` and ``counts``; a sequence that was counted before may only have grown."""
        if output is not self._output or len(output) < self._counted:
            self._output, self._counted = output, 0
            self._places.clear()
            self._counts.fill(0)
        for token in output[self._counted :]:
            self._count(token)
        self._counted = len(output)
        used = len(self._places)
        return self._ids[:used], self._counts[:used]

    def _count(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == self._ids.size:
            self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
        self._ids[place] = token
        self._counts[place] += 1
