"""What these tests share: proposers that are sometimes right, and a governor that always drafts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from enginewright.runtime.speculation.governor import Governor
from enginewright.runtime.speculation.proposer import Proposer, Wanted

Continue = Callable[[Sequence[int], int], list[int]]


class Always(Governor):
    """Drafts whatever is proposed, so that nothing depends on the clock."""

    def choose(
        self, lengths: Mapping[int, int], rows: Collection[int], seconds_per_token: float = 0.0
    ) -> dict[int, int]:
        return dict(lengths)


class Oracle(Proposer):
    """Knows what comes, and says one token in ``wrong_one_in`` wrong."""

    costless = True
    seconds = 0.0

    def __init__(self, knows: Continue, wrong_one_in: int, vocab_size: int) -> None:
        self._knows, self._one_in, self._vocab_size = knows, wrong_one_in, vocab_size
        self._random = np.random.default_rng(5)
        self.rows: set[int] = set()

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        self.rows |= {each.row for each in wanted}
        return [self._draft(each) for each in wanted]

    def retain(self, rows: Collection[int]) -> None:
        self.rows &= set(rows)

    def _draft(self, wanted: Wanted) -> list[int]:
        count = int(self._random.integers(0, wanted.limit + 1))
        draft = self._knows(wanted.tokens, count)
        wrong = self._random.integers(0, self._one_in, count) == 0
        return [
            (token + 1) % self._vocab_size if bad else token
            for token, bad in zip(draft, wrong, strict=True)
        ]


@pytest.fixture(scope="session")
def always() -> type[Governor]:
    return Always


@pytest.fixture(scope="session")
def oracle() -> Any:
    return Oracle
