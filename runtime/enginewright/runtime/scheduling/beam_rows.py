"""The rows of one beam search: who goes on where, with as little to copy as can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from enginewright.runtime.kv_cache.cache import KVCache, common_prefix
from enginewright.runtime.scheduling.row import Row


class Branch(NamedTuple):
    """A beam that goes on: ``parent`` is its place among the live beams, ``token`` its next."""

    parent: int
    token: int


class BeamRows:
    """As many rows as the search is wide; the first computes the prompt.

    ``live`` are the rows of the live beams, in their order.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        first, *others = rows
        assert first.rows == len(rows)
        self.live = [first]
        self._spare = others
        self._first = first

    def branch(self, cache: KVCache, branches: Sequence[Branch]) -> None:
        """The live beams become these. The first to go on from a beam keeps its row."""
        live, self.live = self.live, []
        computed = live[0].computed
        parents = {parent for parent, _ in branches}
        unused = [row for at, row in enumerate(live) if at not in parents]
        sources: dict[int, int] = {}
        tokens: list[list[int]] = []
        forks: list[tuple[Row, Row, list[int]]] = []
        for parent, token in branches:
            source = live[parent]
            tokens.append([*source.tokens, token])
            if source not in self.live:
                row = source
            elif unused:
                row = _nearest(source, unused)
            else:
                row = self._spare.pop()
                forks.append((source, row, tokens[-1]))
            self.live.append(row)
            sources[row.id] = source.id
        fresh = {row.id for _, row, _ in forks}
        moved = {row.id: ids for row, ids in zip(self.live, tokens, strict=True)}
        cache.rearrange(
            {row: source for row, source in sources.items() if row not in fresh},
            {row: ids for row, ids in moved.items() if row not in fresh},
        )
        for source, row, ids in forks:
            cache.reserve(-1, self._first.length)
            found = cache.fork(source.id, row.id, ids)
            assert found, "room was held"
        for row, ids in zip(self.live, tokens, strict=True):
            row.tokens, row.computed = ids, computed
        self._leave(cache, unused)

    def release(self, cache: KVCache) -> None:
        """Give up the room that was held for beams to come; the live rows are for the caller."""
        if self._first.cached is not None:
            cache.reserve(-len(self._spare), self._first.length)

    def _leave(self, cache: KVCache, rows: Sequence[Row]) -> None:
        cache.release([row.id for row in rows])
        cache.reserve(len(rows), self._first.length)
        self._spare += rows


def _nearest(source: Row, rows: list[Row]) -> Row:
    """The row that has most in common with the source, taken from the list."""
    row = max(rows, key=lambda row: common_prefix(row.tokens, source.tokens, source.computed))
    rows.remove(row)
    return row
