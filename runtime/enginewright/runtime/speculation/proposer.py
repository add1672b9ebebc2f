"""The seam of what guesses tokens: rows in, drafts out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import NamedTuple


class Wanted(NamedTuple):
    """A row that takes a draft of up to ``limit`` tokens, at least 1, after its ``tokens``.

    The list is the row's own: it only grows.
    """

    row: int
    tokens: list[int]
    limit: int


class Proposer(ABC):
    """Guesses what comes next. What it proposes never changes what is generated, only how fast."""

    costless: bool
    """Whether to ask costs next to nothing; then it is also asked for what will not be checked."""
    kv_bytes_per_token: int = 0
    """What a token of a row takes in a cache of its own."""

    @abstractmethod
    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        """A draft for each row, in their order; an empty one where there is nothing to go by."""

    @property
    @abstractmethod
    def seconds(self) -> float:
        """What each token of the longest draft of a call has cost lately."""

    @abstractmethod
    def retain(self, rows: Collection[int]) -> None:
        """Forget all rows but these."""

    def forget(self) -> None:
        """Keep nothing that rows which have ended left behind."""
        return

    def reset(self) -> None:
        """After a step that failed: nothing of what was computed is to be relied on."""
        return

    def close(self) -> None:
        """Free what it holds. Closing twice is allowed."""
        return
