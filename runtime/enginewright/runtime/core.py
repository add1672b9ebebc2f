"""The loop: plan a step, run it, sample, remove what ended.

B rows of the plan, S tokens of the widest, V vocabulary.

| tensor        | shape  | dtype   | meaning                                            |
|---------------|--------|---------|----------------------------------------------------|
| input_ids     | [B, S] | int64   | each row's tokens of the plan, right padded with 0 |
| logits_index  | [L]    | int64   | the last real position of each row (L = B); of one |
|               |        |         | whose prompt is scored, all of its positions       |
| logits        | [L, V] | float32 | what each row's next token is sampled from         |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from enginewright.runtime.engine import Engine, StepBatch
from enginewright.runtime.generation import Generation
from enginewright.runtime.kv_cache import SlotManager
from enginewright.runtime.scheduler import MAX_TOKENS_PER_STEP, RowPart, Scheduler, StepPlan


class EngineCore:
    """Runs generations on an engine, many at a time. Not thread-safe: one caller steps it."""

    def __init__(self, engine: Engine, max_tokens_per_step: int = MAX_TOKENS_PER_STEP) -> None:
        info = engine.describe()
        self._engine = engine
        self._slots = SlotManager(min(info.max_batch, info.steps.decode), info.max_context)
        self._scheduler = Scheduler(info.steps, self._slots, max_tokens_per_step)
        self._generations: dict[int, Generation] = {}

    @property
    def busy(self) -> bool:
        """Whether any generation is waiting or running."""
        return bool(self._generations)

    def add(self, generation: Generation) -> None:
        """Queue a generation; its request must fit the engine's limits."""
        request = generation.request
        self._scheduler.add(request.id, len(request.prompt_token_ids))
        self._generations[request.id] = generation

    def abort(self, generations: Iterable[Generation]) -> None:
        """Give up those that are still running; their slots are free for others."""
        ours = [g for g in generations if g.request.id in self._generations]
        for generation in ours:
            generation.abort()
        self._remove(ours)

    def step(self) -> list[Generation]:
        """Run one step; returns the generations that got a token or failed.

        What the engine raises ends every generation: nothing is known of its cache any more.
        """
        plan = self._scheduler.plan()
        if plan is None:
            return []
        try:
            return self._run(plan)
        except BaseException:
            self.abort(list(self._generations.values()))
            raise

    @contextmanager
    def lend(self, rows: int, tokens: int) -> Iterator[Engine]:
        """The engine with room for ``rows`` of ``tokens`` in its first slots, for other steps.

        Only while nothing is running.
        """
        assert not self.busy
        for row in range(rows):
            self._slots.admit(row)
        try:
            self._make_room(tokens)
            yield self._engine
        finally:
            self._slots.release(range(rows))

    def close(self) -> None:
        """Abort what runs and free the engine."""
        self.abort(list(self._generations.values()))
        self._engine.close()

    def _run(self, plan: StepPlan) -> list[Generation]:
        self._make_room(plan.longest)
        logits = self._engine.step(self._batch(plan))
        ready = set(self._scheduler.complete(plan))
        stepped = []
        ends = np.cumsum([len(self._wanted(part)) for part in plan.parts])
        for part, rows in zip(plan.parts, np.split(logits, ends[:-1]), strict=True):
            generation = self._generations[part.row]
            if generation.prompt_scores is not None:
                generation.prompt_scores.take(part.start, rows)
            if part.row in ready:
                generation.accept(rows[-1])
                self._scheduler.append(part.row)
                stepped.append(generation)
        self._remove([generation for generation in stepped if generation.finished])
        return stepped

    def _batch(self, plan: StepPlan) -> StepBatch:
        width = max(part.end - part.start for part in plan.parts)
        return step_batch(
            [self._generations[part.row].token_ids(part.start, part.end) for part in plan.parts],
            [part.start for part in plan.parts],
            plan.first_slot,
            [row * width + at for row, part in enumerate(plan.parts) for at in self._wanted(part)],
        )

    def _wanted(self, part: RowPart) -> range:
        """The positions of the part whose logits are wanted."""
        length = part.end - part.start
        scored = self._generations[part.row].prompt_scores is not None
        return range(0 if scored else length - 1, length)

    def _make_room(self, tokens: int) -> None:
        size = self._slots.grow(tokens)
        if size is not None:
            self._engine.resize(size.slots, size.capacity)

    def _remove(self, generations: Sequence[Generation]) -> None:
        rows = [generation.request.id for generation in generations]
        copies = self._scheduler.remove(rows)
        for row in rows:
            del self._generations[row]
        if copies:
            self._engine.copy_blocks(copies)


def step_batch(
    tokens: Sequence[Sequence[int]],
    past: Sequence[int],
    first_slot: int,
    logits_index: Sequence[int] | None = None,
) -> StepBatch:
    """Rows of new tokens over their pasts, in consecutive slots.

    Without a ``logits_index`` the last position of each row is wanted.
    """
    rows, lengths = len(tokens), [len(row) for row in tokens]
    width = max(lengths)
    input_ids = np.zeros((rows, width), np.int64)
    for row, ids in enumerate(tokens):
        input_ids[row, : len(ids)] = ids
    if logits_index is None:
        logits_index = [row * width + length - 1 for row, length in enumerate(lengths)]
    return StepBatch(
        input_ids=input_ids,
        new_lengths=np.array(lengths, np.int32),
        past_lengths=np.array(past, np.int32),
        block_table=np.arange(first_slot, first_slot + rows, dtype=np.int32)[:, None],
        logits_index=np.array(logits_index, np.int64),
    )
