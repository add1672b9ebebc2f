"""Which rows run in the next step: continuous batching. Pure logic over the engine's steps.

A row waits, is prefilled (a long prompt in chunks), then decodes until its owner removes it.
While there is prefill to do, its steps alternate with decode steps, so neither starves. Rows are
admitted in the order of arrival; only one prompt at a time is prefilled in chunks. When the cache
is full, the youngest row gives its room up and waits, in front of all that came later; what it had
generated is kept and only computed again.

A decode step may carry drafts: tokens that were guessed for a row are computed with its last one,
and the owner says with ``keep`` how many of them were right. Where room is short, none are taken.

A prompt is computed by steps of two or more tokens alone, whatever was taken over for it, and the
output of an exact row one token at a time, also when it is computed again: so an engine that is
batch invariant gives it the same logits every time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, KeysView, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.engine import StepSupport
from enginewright.runtime.kv_cache.cache import Claim, KVCache, common_prefix
from enginewright.runtime.scheduling.beam_rows import BeamRows, Branch
from enginewright.runtime.scheduling.row import Row

MAX_TOKENS_PER_STEP = 512
"""Default bound of a prefill step: what running rows wait for between two of their tokens."""

LEAST_TOKENS_PER_STEP = 4
"""Of a chunk: two tokens, and two more that must not be left over as one."""

StepKind = Literal["decode", "prefill", "extend", "verify"]
"""verify: a decode step with drafts, which the engine runs as an extension."""

Drafter = Callable[[Sequence[Row], Sequence[Row], int], Mapping[int, Sequence[int]]]
"""Drafts by row; given are the rows that may have one, all rows of the step, and the most tokens
that each draft may have."""


@dataclass(frozen=True)
class RowPart:
    """The tokens ``start`` up to ``end`` of a row and then a draft, to be computed in one step."""

    row: Row
    start: int
    end: int
    draft: tuple[int, ...] = ()

    @property
    def tokens(self) -> list[int]:
        return [*self.row.tokens[self.start : self.end], *self.draft]

    @property
    def length(self) -> int:
        return self.end - self.start + len(self.draft)


@dataclass(frozen=True)
class StepPlan:
    """One step, and the blocks [B, n] of its rows."""

    kind: StepKind
    parts: tuple[RowPart, ...]
    table: NDArray[np.int32]

    @property
    def tokens(self) -> int:
        """How many it computes."""
        if self.kind == "decode":
            return len(self.parts)
        return sum(part.length for part in self.parts)


class Scheduler:
    """Plans steps over the rows; the caller runs them, then reports back with ``complete``."""

    def __init__(
        self,
        steps: StepSupport,
        cache: KVCache,
        max_tokens: int = MAX_TOKENS_PER_STEP,
        drafter: Drafter | None = None,
    ) -> None:
        assert steps.decode > 0
        assert steps.prefill > 0
        assert steps.extend or not steps.tokens, "a prompt may need several steps"
        max_tokens = min(max_tokens, steps.tokens or max_tokens)
        assert max_tokens >= LEAST_TOKENS_PER_STEP
        self._steps = steps
        self._cache = cache
        self._max_tokens = max_tokens
        self._drafter = drafter
        self._rows: dict[int, Row] = {}
        self._waiting: list[tuple[tuple[int, int], Row]] = []
        """A heap by order; rows that were forgotten are passed over."""
        self._prefilling: list[Row] = []
        self._prefilled_last = False
        self._arrivals = 0
        self._crowded = False
        self.preemptions = 0

    @property
    def rows(self) -> KeysView[int]:
        """All rows, waiting or live."""
        return self._rows.keys()

    @property
    def running(self) -> int:
        """How many rows have room."""
        return sum(row.live for row in self._rows.values())

    def add(self, row: Row) -> None:
        """Queue a row."""
        assert row.id not in self._rows
        assert row.tokens
        self._arrivals += 1
        row.order = (self._arrivals, row.index)
        self._rows[row.id] = row
        self._wait(row)

    def plan(self) -> StepPlan | None:
        """The next step, None when there is no row. Planning admits rows, and may preempt some.

        A plan that was never completed is planned again.
        """
        if self._prefilled_last and self._cache.decoding:
            return self._decode_step()
        return self._prefill_step() or self._decode_step()

    def complete(self, plan: StepPlan) -> list[Row]:
        """Note that the plan ran; returns the rows that need their next token sampled."""
        prefilled = plan.kind in ("prefill", "extend")
        self._prefilled_last = prefilled
        for part in plan.parts:
            part.row.computed = part.end
            self._cache.computed(part.row.id, part.end, prefilled=prefilled)
            if prefilled and part.end == part.row.to_prefill:
                self._prefilling.remove(part.row)
                self._cache.promote(part.row.id)
        return [part.row for part in plan.parts if not part.row.remaining]

    def keep(self, row: Row, drafted: int) -> None:
        """So many tokens of the row's draft were right; they are among its tokens now.

        The room of those that were wrong is given back: no row is driven out, or waits, for it.
        """
        if drafted:
            row.computed += drafted
            self._cache.computed(row.id, row.computed, prefilled=False)
        self._cache.shrink(row.id, row.computed)

    def fork(self, parent: Row, child: Row, token: int) -> None:
        """The child goes on with this token from all that the parent has computed.

        It decodes from now on if there is room, else it waits for it.
        """
        child.tokens = [*parent.tokens[: parent.computed], token]
        child.prompt, child.order = parent.prompt, (parent.order[0], child.index)
        child.exact, child.reads_cache = parent.exact, parent.reads_cache
        self._rows[child.id] = child
        if self._cache.fork(parent.id, child.id, child.tokens):
            child.computed = child.to_prefill = parent.computed
            child.live = True
        else:
            self._wait(child)

    def branch(self, beams: BeamRows, branches: Sequence[Branch]) -> None:
        """The beams of a search go on as these; ``beams.live`` is in their order afterwards."""
        for row in beams.live:
            del self._rows[row.id]
        beams.branch(self._cache, branches)
        for row in beams.live:
            row.live = True
            self._rows[row.id] = row

    def remove_beams(self, beams: BeamRows) -> None:
        """Forget a whole search."""
        beams.release(self._cache)
        self.remove(beams.live)

    def remove(self, rows: Collection[Row]) -> None:
        """Forget rows, ended or aborted; those that are not known are no concern."""
        gone = [row for row in rows if self._rows.pop(row.id, None) is not None]
        live = {row.id for row in gone if row.live}
        self._prefilling = [row for row in self._prefilling if row.id not in live]
        self._cache.release(live)
        self._crowded = self._crowded and not live

    def reset(self) -> None:
        """Forget all rows, and all that is cached."""
        self._rows, self._waiting, self._prefilling = {}, [], []
        self._crowded = self._prefilled_last = False
        self._cache.reset()

    def _decode_step(self) -> StepPlan | None:
        for row_id in self._cache.decoding:
            row = self._rows[row_id]
            while row.computed and not self._cache.grow(row_id, row.computed + 1):
                self._preempt(self._youngest())
        rows = [self._rows[row] for row in self._cache.decoding]
        if not rows:
            return None
        drafts = self._drafts(rows)
        kind: StepKind = "verify" if drafts else "decode"
        return self._step(kind, rows, [1] * len(rows), drafts)

    def _drafts(self, rows: Sequence[Row]) -> Mapping[int, Sequence[int]]:
        """What is drafted for the rows, as far as there is room without driving out others."""
        if self._drafter is None or self._crowded or len(rows) > self._steps.extend:
            return {}
        fresh = [row for row in rows if row.begun and not row.exact]
        most = self._max_tokens // len(rows) - 1
        if not fresh or most < 1:
            return {}
        drafts = self._drafter(fresh, rows, most)
        if not self._cache.padded:
            return {row: draft for row, draft in drafts.items() if self._fits(row, len(draft))}
        widest = max(map(len, drafts.values()), default=0)
        return drafts if all(self._fits(row.id, widest) for row in rows) else {}

    def _fits(self, row: int, drafted: int) -> bool:
        """Whether there is room for the row's last token and so many drafted ones."""
        return self._cache.grow(row, self._rows[row].computed + 1 + drafted)

    def _youngest(self) -> Row:
        """Of the live rows that were not promised their room."""
        live = [*self._prefilling, *(self._rows[row] for row in self._cache.decoding)]
        return max((row for row in live if not row.length), key=lambda row: row.order)

    def _preempt(self, row: Row) -> None:
        self.preemptions += 1
        self._crowded = True  # until one has ended: let in at once, it would be driven out again
        self._cache.release([row.id])
        if row in self._prefilling:
            self._prefilling.remove(row)
        row.computed, row.live = 0, False
        self._wait(row)

    def _wait(self, row: Row) -> None:
        heappush(self._waiting, (row.order, row))

    def _next(self) -> Row | None:
        """The row that has waited longest, by order."""
        while self._waiting:
            row = self._waiting[0][1]
            if row.id in self._rows:
                return row
            heappop(self._waiting)
        return None

    def _prefill_step(self) -> StepPlan | None:
        """The next chunk of a prompt already begun, else the first of one or more prompts."""
        if not self._prefilling and not (self._crowded and self._cache.decoding):
            self._admit()
        if not self._prefilling:
            return None
        kind: StepKind = "extend" if self._prefilling[0].computed else "prefill"
        return self._step(kind, self._prefilling, [self._chunk(row) for row in self._prefilling])

    def _admit(self) -> None:
        """Let in who comes next, and those behind that fit into the same step.

        A prompt longer than a step fills it alone, so that at most one is ever half done.
        """
        while (row := self._next()) is not None:
            row.to_prefill = row.prompt if row.exact else len(row.tokens)
            claim = self._claim(row)
            if self._prefilling and not self._joins(row, claim):
                return
            taken = self._cache.admit(claim)
            if taken is None:
                return
            heappop(self._waiting)
            self._begin(row, taken)

    def _begin(self, row: Row, taken: int) -> None:
        """The row is live, with so many tokens taken over."""
        if row.exact and taken and row.to_prefill - taken == 1:
            taken -= 1  # it would be computed alone: computed again, its neighbour stays the same
        row.computed, row.live = taken, True
        if row.cached is None:
            row.cached, row.admitted_at = taken, time.perf_counter()
        if row.rows > 1:
            self._cache.reserve(row.rows - 1, row.length)
        if taken and row.to_prefill - taken <= 1:
            self._cache.promote(row.id)
        else:
            self._prefilling.append(row)

    def _claim(self, row: Row) -> Claim:
        known = len(row.tokens)
        if not (row.reads_cache and self._steps.extend):
            most = 0
        elif known > row.to_prefill:
            most = row.to_prefill
        else:  # the last token's logits are wanted: it is computed in any case
            most = known - (2 if row.exact else 1)
        return Claim(row.id, row.tokens, max(most, 0), row.exact, row.rows, row.length)

    def _joins(self, row: Row, claim: Claim) -> bool:
        """Whether the row fits into the step of the rows that are about to be prefilled.

        Not if it could take over more once they are: it comes after them.
        """
        first = self._prefilling[0]
        limit = self._steps.extend if first.computed else self._steps.prefill
        taken = self._cache.match(claim)
        if len(self._prefilling) == limit or bool(taken) != bool(first.computed):
            return False
        if taken and row.to_prefill - taken <= 1:  # it needs no such step
            return False
        widths = [self._chunk(row, taken), *(self._chunk(each) for each in self._prefilling)]
        if max(widths) * len(widths) > self._max_tokens:
            return False
        soon = (
            common_prefix(other.tokens, row.tokens, min(claim.most, other.to_prefill))
            for other in self._prefilling
        )
        return max(soon) < max(self._cache.min_reuse, taken + 1)

    def _chunk(self, row: Row, taken: int = 0) -> int:
        """Tokens of the row to compute in a step; all where extend cannot run. Never leaves one."""
        remaining = row.to_prefill - max(row.computed, taken)
        if not self._steps.extend or remaining <= self._max_tokens:
            return remaining
        return self._max_tokens - (remaining == self._max_tokens + 1)

    def _step(
        self,
        kind: StepKind,
        rows: Sequence[Row],
        counts: Sequence[int],
        drafts: Mapping[int, Sequence[int]] = MappingProxyType({}),
    ) -> StepPlan:
        parts = tuple(
            RowPart(row, row.computed, row.computed + count, tuple(drafts.get(row.id, ())))
            for row, count in zip(rows, counts, strict=True)
        )
        return StepPlan(kind, parts, self._cache.table([row.id for row in rows]))
