"""The loop: plan a step, run it, hand the logits to those who asked.

B rows of the plan, S tokens of the widest, V vocabulary, n blocks a row.

| tensor        | shape  | dtype   | meaning                                            |
|---------------|--------|---------|----------------------------------------------------|
| input_ids     | [B, S] | int64   | each row's tokens of the plan, right padded with 0 |
| block_table   | [B, n] | int32   | where the cache of each row is                     |
| logits_index  | [L]    | int64   | the last real position of each row (L = B); of one |
|               |        |         | whose prompt is scored, and of one with a draft,   |
|               |        |         | all of its positions                               |
| logits        | [L, V] | float32 | what each row's next token is sampled from         |
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.engine import BlockCopy, Engine, EngineInfo, RowLogits, StepBatch
from enginewright.runtime.errors import RequestError
from enginewright.runtime.kv_cache.cache import Claim, Command
from enginewright.runtime.kv_cache.opening import check_context, open_cache
from enginewright.runtime.scheduling.job import Job
from enginewright.runtime.scheduling.row import Row
from enginewright.runtime.scheduling.scheduler import (
    MAX_TOKENS_PER_STEP,
    RowPart,
    Scheduler,
    StepPlan,
)
from enginewright.runtime.speculation.proposer import Wanted
from enginewright.runtime.speculation.speculator import Drafts, Speculator
from enginewright.runtime.stats import STEP_TOKENS, EngineStats, Tally


class EngineCore:
    """Runs jobs on an engine, many at a time. One caller at a time: another is refused.

    ``kv_cache_memory_bytes`` bounds the cache, that of what drafts included; without it, the
    engine's limits do. ``fixed_context``: bytes that hold no request of the engine's max_context
    are refused; else they lower it, with a warning.
    ``enable_prefix_caching``: what rows have computed is taken over by those that begin alike.
    ``speculator``: drafts tokens of rows that decode; it is closed with the engine, and learns by
    ``clock``, in seconds, what steps take.
    """

    def __init__(
        self,
        engine: Engine,
        max_tokens_per_step: int = MAX_TOKENS_PER_STEP,
        *,
        kv_cache_memory_bytes: int | None = None,
        fixed_context: bool = False,
        enable_prefix_caching: bool = True,
        speculator: Speculator | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine = engine
        self._speculator = speculator
        self._clock = clock
        info, memory = engine.describe(), kv_cache_memory_bytes
        beside = 0 if speculator is None else speculator.kv_bytes_per_token
        self._cache = open_cache(info, memory, enable_prefix_caching, beside=beside)
        check_context(info, self._cache, memory, asked=fixed_context, beside=beside)
        drafter = None if speculator is None else self._draft
        self._scheduler = Scheduler(info.steps, self._cache, max_tokens_per_step, drafter)
        self._prefix_caching = enable_prefix_caching
        self._jobs: dict[int, Job] = {}
        self._in_use = threading.Lock()
        self._unwanted: deque[Job] = deque()
        self._step_tokens = Tally(STEP_TOKENS)

    def describe(self) -> EngineInfo:
        """What the engine declares; no row can be longer than its cache."""
        info = self._engine.describe()
        return dataclasses.replace(info, max_context=self._cache.max_length)

    @property
    def busy(self) -> bool:
        """Whether any job is waiting or running."""
        return bool(self._jobs)

    @property
    def preemptions(self) -> int:
        """How often a row gave up its room since the start."""
        return self._scheduler.preemptions

    def stats(self) -> EngineStats:
        """How the engine stands; not in the middle of a step."""
        running, rows = self._scheduler.running, len(self._scheduler.rows)
        return EngineStats(
            running, rows - running, self._cache.usage, self.preemptions, self._step_tokens.read()
        )

    def add(self, job: Job) -> None:
        """Queue a job; it must fit the engine's limits. Raises RequestError as ``check``."""
        self.check(job)
        row = job.first_row()
        info = self._engine.describe()
        # Where no step changes a token's bits, every row is exact whatever it runs in.
        row.exact = row.exact and info.batch_invariant and not info.step_invariant
        may_read = self._prefix_caching and (info.chunk_invariant or not row.exact)
        row.reads_cache = row.reads_cache and may_read
        with self._alone():
            self._scheduler.add(row)
            self._jobs |= dict.fromkeys(job.row_ids, job)

    def check(self, job: Job) -> None:
        """Raise RequestError if the job's rows have no room in the cache, even alone."""
        row = job.first_row()
        if not self._cache.fits(row.rows, max(len(row.tokens), row.length)):
            raise RequestError(
                f"{row.rows} beams of {row.length} tokens do not fit into the cache of this "
                f"engine: lower beam_width or max_tokens, or raise max_batch or "
                f"kv_cache_memory_bytes"
            )

    def abort(self, jobs: Iterable[Job]) -> None:
        """Give up those that are still running; their room is free for others.

        In the middle of a step, be it another thread's or one that led here (a stream may be
        collected as garbage at any moment), they are given up when it ends.
        """
        self._unwanted.extend(jobs)
        self._drop_unwanted()

    def step(self) -> list[Job]:
        """Run one step; returns the jobs that got a token or failed.

        What is raised on the way, by the engine or by an interrupt, ends every job: nothing is
        known of the cache any more.
        """
        with self._alone():
            try:
                plan = self._scheduler.plan()
                return [] if plan is None else self._run(plan)
            except BaseException:
                self._scheduler.reset()
                if self._speculator is not None:
                    self._speculator.reset()
                self._abort(set(self._jobs.values()))
                raise

    @contextmanager
    def lend(self, rows: int, tokens: int) -> Iterator[tuple[Engine, NDArray[np.int32]]]:
        """The engine with room for ``rows`` of ``tokens``, and their block table, for other steps.

        Only while nothing is running. Raises RequestError if the cache has not so much room.
        """
        assert not self.busy
        if not self._cache.fits(rows, tokens):
            raise RequestError(f"{rows} rows of {tokens} tokens do not fit into the cache")
        ids = range(-rows, 0)
        try:
            for row in ids:
                self._cache.admit(Claim(row, [0] * tokens, most=0, exact=False, length=tokens))
            carry_out(self._engine, self._cache.take_commands())
            yield self._engine, self._cache.table(ids)
        except BaseException:  # as in step
            self._cache.reset()
            raise
        self._cache.release(ids)

    def reset_prefix_cache(self) -> None:
        """Keep nothing of what ended rows have computed."""
        self._cache.forget()
        if self._speculator is not None:
            self._speculator.forget()

    def close(self) -> None:
        """Abort what runs and free the engine; RequestError in the middle of a step."""
        with self._alone():
            self._abort(set(self._jobs.values()))
            self._engine.close()
            if self._speculator is not None:
                self._speculator.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._in_use.acquire(blocking=False):
            raise RequestError(
                "this engine is in the middle of another call's step: one thread uses an LLM at a "
                "time, and a logits processor must not call it; AsyncLLM takes requests from many"
            )
        try:
            yield
        finally:
            self._in_use.release()
            self._drop_unwanted()

    def _drop_unwanted(self) -> None:
        """If a step runs, it does this at its end: whoever came too late for that comes here."""
        while self._unwanted and self._in_use.acquire(blocking=False):
            try:
                while self._unwanted:
                    self._abort([self._unwanted.popleft()])
            finally:
                self._in_use.release()

    def _abort(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if self._jobs.get(job.row_ids[0]) is job:
                job.abort(self._scheduler)
                self._forget(job)
        if self._speculator is not None:
            self._speculator.retain(self._scheduler.rows)

    def _run(self, plan: StepPlan) -> list[Job]:
        carry_out(self._engine, self._cache.take_commands())
        batch = self._batch(plan)
        started = self._clock()
        logits = self._engine.step(batch)
        seconds = self._clock() - started
        self._step_tokens.add(plan.tokens)
        ready = {row.id for row in self._scheduler.complete(plan)}
        moved: dict[Job, dict[int, RowLogits]] = {}
        verified: dict[int, tuple[int, int]] = {}
        end = 0
        for part in plan.parts:
            start, end = end, end + len(self._wanted(part))
            row, job = part.row.id, self._jobs[part.row.id]
            if row == job.scored_row:
                job.take_prompt(part.start, logits[start:end])
            if part.draft:
                found = [logits[at] for at in range(start, end)]
                right = job.verify(self._scheduler, row, part.draft, found)
                verified[row] = len(part.draft), right
                moved.setdefault(job, {})
            elif row in ready:
                moved.setdefault(job, {})[row] = logits[end - 1]
        for job, rows in moved.items():
            job.accept(self._scheduler, rows)
            if job.finished:
                self._forget(job)
        self._learn(plan, seconds, verified)
        return list(moved)

    def _draft(self, rows: Sequence[Row], step: Sequence[Row], most: int) -> Drafts:
        assert self._speculator is not None
        limits = [min(most, self._jobs[row.id].draft_limit(row.id)) for row in rows]
        wanted = [
            Wanted(row.id, row.tokens, limit)
            for row, limit in zip(rows, limits, strict=True)
            if limit > 0
        ]
        return self._speculator.draft(
            wanted,
            [row.id for row in step],
            lambda row, draft: self._jobs[row].possible(row, draft),
        )

    def _learn(
        self, plan: StepPlan, seconds: float, verified: Mapping[int, tuple[int, int]]
    ) -> None:
        """Tell the speculator how long a step of decoding rows took, and what drafts were right."""
        if self._speculator is None:
            return
        if plan.kind in ("decode", "verify"):
            width = max(part.length for part in plan.parts)
            self._speculator.ran([part.row.id for part in plan.parts], width, seconds, verified)
        else:
            self._speculator.joined()
        self._speculator.retain(self._scheduler.rows)

    def _batch(self, plan: StepPlan) -> StepBatch:
        width = max(part.length for part in plan.parts)
        return step_batch(
            [part.tokens for part in plan.parts],
            [part.start for part in plan.parts],
            plan.table,
            [row * width + at for row, part in enumerate(plan.parts) for at in self._wanted(part)],
        )

    def _wanted(self, part: RowPart) -> range:
        """The positions of the part whose logits are wanted."""
        scored = self._jobs[part.row.id].scored_row == part.row.id
        return range(0 if scored or part.draft else part.length - 1, part.length)

    def _forget(self, job: Job) -> None:
        for row in job.row_ids:
            del self._jobs[row]


def carry_out(engine: Engine, commands: Sequence[Command]) -> None:
    """Have the engine do what its cache asks for, before the next step."""
    copies: list[BlockCopy] = []
    for command in commands:
        if isinstance(command, BlockCopy):
            copies.append(command)
            continue
        if copies:
            engine.copy_blocks(copies)
            copies = []
        engine.resize(command.blocks, command.block_size)
    if copies:
        engine.copy_blocks(copies)


def step_batch(
    tokens: Sequence[Sequence[int]],
    past: Sequence[int],
    table: NDArray[np.int32],
    logits_index: Sequence[int] | None = None,
) -> StepBatch:
    """Rows of new tokens over their pasts; ``table`` [B, n] says where they are.

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
        block_table=table,
        logits_index=np.array(logits_index, np.int64),
    )
