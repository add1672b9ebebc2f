"""Which rows run in the next step: continuous batching. Pure logic over the engine's steps.

A row waits, is prefilled (a long prompt in chunks), then decodes until its owner removes it.
While there is prefill to do, its steps alternate with decode steps, so neither starves. Prompts
are admitted in the order of arrival; only one prompt at a time is prefilled in chunks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from enginewright.runtime.engine import StepSupport
from enginewright.runtime.kv_cache import Copy, SlotManager

MAX_TOKENS_PER_STEP = 512
"""Default bound of a prefill step: what running rows wait for between two of their tokens."""

StepKind = Literal["decode", "prefill", "extend"]


@dataclass(frozen=True)
class RowPart:
    """The tokens ``start`` up to ``end`` of a row, to be computed in one step."""

    row: int
    start: int
    end: int


@dataclass(frozen=True)
class StepPlan:
    """One step: ``parts[i]`` runs in slot ``first_slot + i``."""

    kind: StepKind
    first_slot: int
    parts: tuple[RowPart, ...]

    @property
    def longest(self) -> int:
        """Tokens that the fullest row holds after the step."""
        return max(part.end for part in self.parts)


@dataclass
class _Progress:
    """Tokens of a row that are known, and those of them that the cache holds."""

    known: int
    computed: int = 0

    @property
    def remaining(self) -> int:
        return self.known - self.computed


class Scheduler:
    """Plans steps over the rows; the caller runs them, then reports back with ``complete``."""

    def __init__(
        self, steps: StepSupport, slots: SlotManager, max_tokens: int = MAX_TOKENS_PER_STEP
    ) -> None:
        assert steps.decode > 0
        assert steps.prefill > 0
        assert max_tokens > 1  # an extend step has at least two tokens
        self._steps = steps
        self._slots = slots
        self._max_tokens = max_tokens
        self._waiting: deque[int] = deque()
        self._progress: dict[int, _Progress] = {}
        self._prefilled_last = False

    @property
    def rows(self) -> Collection[int]:
        """All rows, waiting or live."""
        return self._progress.keys()

    def add(self, row: int, tokens: int) -> None:
        """Queue a row whose prompt has ``tokens`` tokens."""
        assert row not in self._progress
        assert tokens > 0
        self._progress[row] = _Progress(tokens)
        self._waiting.append(row)

    def plan(self) -> StepPlan | None:
        """The next step, None when there is no row. Planning admits waiting rows to slots.

        A plan that was never completed is planned again.
        """
        prefill = bool(self._slots.prefilling or (self._waiting and self._slots.free))
        if self._slots.decoding and (self._prefilled_last or not prefill):
            return self._decode_step()
        return self._prefill_step() if prefill else None

    def complete(self, plan: StepPlan) -> list[int]:
        """Note that the plan ran; returns the rows that need their next token sampled."""
        self._prefilled_last = plan.kind != "decode"
        for part in plan.parts:
            progress = self._progress[part.row]
            progress.computed = part.end
            # A last token alone is a decode step over the past: no extend step is needed.
            if plan.kind != "decode" and progress.remaining <= 1:
                self._slots.promote(part.row)
        return [part.row for part in plan.parts if not self._progress[part.row].remaining]

    def append(self, row: int) -> None:
        """The row has one more token, which is yet to be computed."""
        self._progress[row].known += 1

    def remove(self, rows: Collection[int]) -> list[Copy]:
        """Forget rows, ended or aborted; returns the block copies to carry out, in order."""
        waiting = {row for row in self._waiting if row in rows}
        self._waiting = deque(row for row in self._waiting if row not in waiting)
        for row in rows:
            del self._progress[row]
        return self._slots.release([row for row in rows if row not in waiting])

    def _decode_step(self) -> StepPlan:
        return StepPlan("decode", 0, tuple(self._part(row, 1) for row in self._slots.decoding))

    def _prefill_step(self) -> StepPlan:
        """The next chunk of a prompt already begun, else the first of one or more prompts."""
        for row in self._slots.prefilling[:1]:
            if self._progress[row].computed:
                part = self._part(row, self._chunk(row))
                return StepPlan("extend", self._slots.slot(row), (part,))
        rows = self._prefill_rows()
        for row in rows:
            if row not in self._slots.prefilling:
                self._slots.admit(row)
                self._waiting.popleft()
        parts = tuple(self._part(row, self._chunk(row)) for row in rows)
        return StepPlan("prefill", self._slots.slot(rows[0]), parts)

    def _prefill_rows(self) -> list[int]:
        """Prompts to begin together, in order: as many as the padded step has room for.

        A prompt longer than a step fills it alone, so that at most one is ever half done.
        """
        begun = self._slots.prefilling
        limit = min(self._steps.prefill, len(begun) + self._slots.free)
        rows: list[int] = []
        width = 0
        for row in (*begun, *self._waiting):
            width = max(width, self._chunk(row))
            if rows and (len(rows) == limit or width * (len(rows) + 1) > self._max_tokens):
                break
            rows.append(row)
        return rows

    def _chunk(self, row: int) -> int:
        """Tokens of the row's prompt to compute in a step; all where extend cannot run."""
        remaining = self._progress[row].remaining
        return min(remaining, self._max_tokens) if self._steps.extend else remaining

    def _part(self, row: int, count: int) -> RowPart:
        start = self._progress[row].computed
        return RowPart(row, start, start + count)
