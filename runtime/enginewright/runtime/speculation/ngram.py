"""Drafts from the row itself: what followed its last tokens where they stood before."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from enginewright.runtime.speculation.proposer import Proposer, Wanted


class NgramProposer(Proposer):
    """Looks for the last ``longest`` tokens, then for fewer, down to ``shortest``."""

    costless = True

    def __init__(self, longest: int, shortest: int) -> None:
        assert 1 <= shortest <= longest
        self._sizes = range(longest, shortest - 1, -1)
        self._rows: dict[int, _Index] = {}

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        return [self._index(each.row).follow(each.tokens, each.limit) for each in wanted]

    @property
    def seconds(self) -> float:
        return 0.0

    def retain(self, rows: Collection[int]) -> None:
        self._rows = {row: index for row, index in self._rows.items() if row in rows}

    def _index(self, row: int) -> _Index:
        if row not in self._rows:
            self._rows[row] = _Index(self._sizes)
        return self._rows[row]


class _Index:
    """Where each run of tokens of one row ended last. A look costs what is new in the row."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._ends: dict[int, dict[tuple[int, ...], int]] = {size: {} for size in sizes}
        self._known = 0
        """Tokens such that the runs that end with one of them are in the index."""

    def follow(self, tokens: list[int], limit: int) -> list[int]:
        """What came after the longest run that the tokens end with; of several, the last."""
        self._add(tokens)
        for size, ends in self._ends.items():
            end = ends.get(tuple(tokens[-size:]))
            if end is not None:
                return _copy(tokens, end, limit)
        return []

    def _add(self, tokens: list[int]) -> None:
        """All runs that something follows: not the one that the tokens end with."""
        known, self._known = self._known, max(len(tokens) - 1, 0)
        if self._known == known + 1:  # as after a plain step: below takes six times as long
            for size, ends in self._ends.items():
                if size <= self._known:
                    ends[tuple(tokens[self._known - size : self._known])] = self._known
            return
        for size, ends in self._ends.items():
            first = max(known + 1 - size, 0)
            last = max(len(tokens) - size, first)
            columns = (tokens[first + at : last + at] for at in range(size))
            runs = zip(*columns, strict=True)
            ends.update(zip(runs, range(first + size, last + size), strict=True))


def _copy(tokens: list[int], start: int, count: int) -> list[int]:
    """``count`` tokens from ``start`` on; at the end it goes on with what was just copied."""
    draft = tokens[start : start + count]
    period = len(tokens) - start
    while len(draft) < count:
        draft.append(draft[-period])
    return draft
