"""Drafts from another engine: what a smaller model with the same vocabulary thinks most likely.

The draft's engine has a cache of its own, with a row for each row that it drafts for. What it
computed of a draft that was right is kept; what was wrong is written over.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from enginewright.runtime.engine import Engine
from enginewright.runtime.kv_cache.cache import Claim, common_prefix
from enginewright.runtime.kv_cache.opening import open_cache
from enginewright.runtime.scheduling.core import carry_out, step_batch
from enginewright.runtime.scheduling.scheduler import MAX_TOKENS_PER_STEP
from enginewright.runtime.speculation.proposer import Proposer, Wanted

FEW = 2
"""Tokens of a row that the draft has not computed after a step that it drafted for, at most."""


@dataclass(eq=False)
class _Row:
    """``tokens`` are the target's; ``written`` are in the cache, ``sure`` of them for good."""

    id: int
    tokens: list[int]
    written: list[int] = field(default_factory=list)
    sure: int = 0
    draft: list[int] = field(default_factory=list)
    limit: int = 0

    @property
    def pending(self) -> list[int]:
        """What the engine has to compute for the next token of the draft."""
        return [*self.tokens[len(self.written) :], *self.draft[self._drafts_written :]]

    @property
    def _drafts_written(self) -> int:
        return max(len(self.written) - len(self.tokens), 0)


class DraftProposer(Proposer):
    """Greedy continuations of all rows together, by ``engine``, which it closes.

    ``memory`` bounds its cache together with that of the target, in which a token takes ``beside``
    bytes.
    """

    costless = False

    def __init__(self, engine: Engine, memory: int | None = None, beside: int = 0) -> None:
        info = engine.describe()
        self._engine, self._steps, self._slots = engine, info.steps, info.kv_layout == "slots"
        self._max_tokens = min(MAX_TOKENS_PER_STEP, info.steps.tokens or MAX_TOKENS_PER_STEP)
        self._cache = open_cache(info, memory, keep=True, beside=beside)
        self.kv_bytes_per_token = info.kv_bytes_per_token
        self._rows: dict[int, _Row] = {}
        self._seconds = 0.0

    def propose(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        self._settle()
        ready = [row for each in wanted if (row := self._prepare(each)) is not None]
        started = time.perf_counter()
        going = ready
        while going:
            self._advance(going)
            going = [row for row in going if len(row.draft) < row.limit]
        longest = max((len(row.draft) for row in ready), default=0)
        if longest:
            self._seconds = (time.perf_counter() - started) / longest
        drafts = {row.id: row.draft for row in ready}
        return [drafts.get(each.row, []) for each in wanted]

    @property
    def seconds(self) -> float:
        """Without what it took to begin rows, or to catch up with them after a pause."""
        return self._seconds

    def retain(self, rows: Collection[int]) -> None:
        gone = [row for row in self._rows if row not in rows]
        if gone:
            self._settle()  # others may move: with what counts as computed
            self._cache.release(gone)
        for row in gone:
            del self._rows[row]

    def forget(self) -> None:
        self._cache.forget()

    def reset(self) -> None:
        self._rows = {}
        self._cache.reset()

    def close(self) -> None:
        self._engine.close()

    def _prepare(self, wanted: Wanted) -> _Row | None:
        """The row with all but its last few tokens in the cache; None if it has no room there."""
        limit = min(wanted.limit, self._cache.max_length - len(wanted.tokens))
        row = self._rows.get(wanted.row) or self._admit(wanted)
        if row is None or limit < 1 or not self._cache.grow(row.id, len(row.tokens) + limit):
            return None
        row.draft, row.limit = [], limit
        self._catch_up(row)
        return row

    def _settle(self) -> None:
        """Of the last drafts what was right counts; the rest goes, and its room."""
        for row in self._rows.values():
            most = len(row.tokens) - 1 - row.sure
            right = common_prefix(row.written[row.sure :], row.tokens[row.sure :], most)
            del row.written[row.sure + right :]
            self._count(row)
            self._cache.shrink(row.id, row.sure)

    def _count(self, row: _Row) -> None:
        """What is written is right."""
        if len(row.written) > row.sure:
            row.sure = len(row.written)
            self._cache.computed(row.id, row.sure, prefilled=False)

    def _admit(self, wanted: Wanted) -> _Row | None:
        tokens = wanted.tokens
        if len(tokens) >= self._cache.max_length:
            return None
        most = len(tokens) - 1 if self._steps.extend else 0
        taken = self._cache.admit(Claim(wanted.row, tokens, most, exact=False))
        if taken is None:
            return None
        self._cache.promote(wanted.row)
        row = self._rows[wanted.row] = _Row(wanted.row, tokens, tokens[:taken], taken)
        return row

    def _catch_up(self, row: _Row) -> None:
        if len(row.pending) <= (FEW if self._steps.extend else 1):
            return
        while len(row.pending) > 1:
            chunk = len(row.pending) - 1
            if row.written:
                chunk = min(chunk, self._max_tokens) if self._steps.extend else 1
            elif self._steps.extend:
                chunk = min(chunk, self._max_tokens)
            self._step([row], [chunk])
        self._count(row)

    def _advance(self, rows: Sequence[_Row]) -> None:
        """The next token of each row's draft."""
        for group in self._groups(rows):
            for row, token in zip(group, self._step(group), strict=True):
                row.draft.append(token)

    def _groups(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        """Rows that may run in one step: of slots, neighbours; of several tokens, few."""
        group: list[_Row] = []
        for row in self._in_order(rows):
            wide = max(len(each.pending) for each in [*group, row]) > 1
            most = self._steps.extend if wide else self._steps.decode
            if group and (len(group) >= most or not self._beside(group[-1], row)):
                yield group
                group = []
            group.append(row)
        yield group

    def _in_order(self, rows: Sequence[_Row]) -> list[_Row]:
        by_id = {row.id: row for row in rows}
        return [by_id[row] for row in self._cache.decoding if row in by_id]

    def _beside(self, one: _Row, other: _Row) -> bool:
        if not self._slots:
            return True
        first, second = self._cache.table([one.id, other.id])[:, 0]
        return bool(second == first + 1)

    def _step(self, rows: Sequence[_Row], counts: Sequence[int] | None = None) -> list[int]:
        """Compute what is pending of the rows; the likeliest token after each."""
        carry_out(self._engine, self._cache.take_commands())
        tokens = [row.pending for row in rows]
        if counts is not None:
            tokens = [ids[:count] for ids, count in zip(tokens, counts, strict=True)]
        past = [len(row.written) for row in rows]
        table = self._cache.table([row.id for row in rows])
        logits = self._engine.step(step_batch(tokens, past, table))
        for row, ids in zip(rows, tokens, strict=True):
            row.written += ids
        return [int(np.argmax(logits[at])) for at in range(len(rows))]
