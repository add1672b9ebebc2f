"""What the scheduler asks of a cache, whatever its layout. Pure logic: commands come out.

A row is known by a number, and its tokens by the list that its owner appends to: a cache keeps that
list, and how many of its tokens are computed. What an ended row had computed stays until its
place is needed, so that a later row that begins with the same tokens takes it over.

Tokens computed one at a time (a decode step) may differ in the last bits from the same tokens
computed together (prefill, extend). ``prefilled`` counts the leading tokens of the latter kind. An
``exact`` row, one whose tokens must not depend on what ran before it, takes over only those.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.engine import BlockCopy


@dataclass(frozen=True)
class Resize:
    """The pool is to have this many blocks of this many tokens."""

    blocks: int
    block_size: int


Command = BlockCopy | Resize


@dataclass(frozen=True)
class Claim:
    """A row that wants in.

    ``most``: how many of its tokens it may take over at most. ``rows`` and ``length``: there must
    be room for so many rows of so many tokens (beams come all or not at all); the row itself is
    promised that length, the others' room is for the caller to ``reserve``.
    """

    row: int
    tokens: list[int]
    most: int
    exact: bool
    rows: int = 1
    length: int = 0


class KVCache(ABC):
    """Rows and their room. Rows decode in the order of ``decoding``."""

    padded: bool
    """Whether a step may write each row as wide as its widest: all then need room for that."""

    def __init__(self) -> None:
        self._reserved: Counter[int] = Counter()
        self._commands: list[Command] = []

    def reserve(self, rows: int, length: int) -> None:
        """Keep room for so many more rows of this length; of fewer if ``rows`` is negative."""
        self._reserved[length] += rows
        self._reserved += Counter()  # drops what is no more held

    @property
    def reserved_rows(self) -> int:
        """Rows that may still come by ``fork``, whatever else is admitted."""
        return self._reserved.total()

    @property
    @abstractmethod
    def min_reuse(self) -> int:
        """Tokens in common below which a row does not wait to take them over."""

    @property
    @abstractmethod
    def max_length(self) -> int:
        """Tokens that a row can have at most."""

    @abstractmethod
    def fits(self, rows: int, length: int) -> bool:
        """Whether so many rows of so many tokens have room if nothing else is live."""

    @property
    @abstractmethod
    def free_rows(self) -> int:
        """How many more rows may be live, those that are promised left out."""

    @property
    @abstractmethod
    def usage(self) -> float:
        """The part of all room that live rows hold, 0 to 1."""

    @property
    @abstractmethod
    def decoding(self) -> Sequence[int]:
        """Live rows that decode, in the order in which a step takes them."""

    @abstractmethod
    def match(self, claim: Claim) -> int:
        """How many of the claim's leading tokens could be taken over now."""

    @abstractmethod
    def admit(self, claim: Claim) -> int | None:
        """Make the row live; returns how many tokens it took over, None if there is no room.

        There is always room for a row alone that is no longer than the cache's limit.
        """

    @abstractmethod
    def grow(self, row: int, length: int) -> bool:
        """Make room for ``length`` tokens of a live row; False: others must go first."""

    def shrink(self, row: int, length: int) -> None:
        """Give back what room a live row has beyond ``length`` tokens, if others could use it."""
        return

    @abstractmethod
    def computed(self, row: int, tokens: int, *, prefilled: bool) -> None:
        """The row's first ``tokens`` are in the cache now; whether the newest came together."""

    @abstractmethod
    def promote(self, row: int) -> None:
        """The row decodes from now on; with slots, rows do so in the order of admission."""

    @abstractmethod
    def fork(self, parent: int, child: int, tokens: list[int]) -> bool:
        """Make ``child`` live and decoding with all that the parent has computed; False: no room.

        ``tokens`` begin with those that the parent has computed.
        """

    @abstractmethod
    def rearrange(self, parents: dict[int, int], tokens: dict[int, list[int]]) -> None:
        """Each row (key) goes on from what a row (value) has computed, with these tokens.

        The parents are among the rows; a row that is its own parent stays as it is.
        """

    @abstractmethod
    def release(self, rows: Collection[int]) -> None:
        """Rows are live no more."""

    @abstractmethod
    def table(self, rows: Sequence[int]) -> NDArray[np.int32]:
        """The blocks [B, n] of rows that run in one step."""

    @abstractmethod
    def forget(self) -> None:
        """Keep nothing of rows that have ended."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything; the pool's size, too. No row is live."""

    def take_commands(self) -> list[Command]:
        """What the engine has to do before its next step, in order."""
        commands, self._commands = self._commands, []
        return commands


def common_prefix(a: Sequence[int], b: Sequence[int], most: int) -> int:
    """How many leading tokens two lists share, ``most`` at most."""
    most = min(most, len(a), len(b))
    same, width = 0, 64
    while same < most:  # slices are compared at memory speed: look where one differs first
        end = min(same + width, most)
        if a[same:end] == b[same:end]:
            same, width = end, 2 * width
        elif end - same == 1:
            break
        else:
            width = (end - same) // 2
    return same


def power_of_two(number: int) -> int:
    """The lowest that is not below the number."""
    return 1 << max(number - 1, 0).bit_length()
