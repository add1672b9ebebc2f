"""A beam search as the core runs it: as many rows as it is wide."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from enginewright.runtime.beam_search.hypotheses import Hypothesis
from enginewright.runtime.beam_search.params import BeamSearchParams
from enginewright.runtime.beam_search.search import BeamSearch, Constraint
from enginewright.runtime.engine import RowLogits
from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.requests.outputs import RequestMetrics
from enginewright.runtime.scheduling.beam_rows import BeamRows
from enginewright.runtime.scheduling.job import Job
from enginewright.runtime.scheduling.row import Row
from enginewright.runtime.scheduling.scheduler import Scheduler
from enginewright.runtime.text.detokenizer import IncrementalDetokenizer
from enginewright.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class BeamRequest:
    """A beam search that was asked for and found valid: it fits the engine's limits.

    ``row_ids``: one for each beam.
    """

    row_ids: tuple[int, ...]
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    params: BeamSearchParams


class BeamJob(Job):
    """The running state of a beam search, with the text that its beams have."""

    def __init__(
        self,
        request: BeamRequest,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        max_context: int,
        eos_token_ids: Collection[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        params, prompt = request.params, request.prompt_token_ids
        assert len(request.row_ids) == params.beam_width
        self.request = request
        self._tokenizer = tokenizer
        self._eos = frozenset(() if params.ignore_eos else eos_token_ids)
        self._text = IncrementalDetokenizer(
            tokenizer,
            params.stop_strings,
            params.include_stop_str_in_output,
            params.skip_special_tokens,
            prompt,
            params.min_tokens,
        )
        self._search = BeamSearch(
            params,
            vocab_size=vocab_size,
            eos_token_ids=eos_token_ids,
            room=max_context - len(prompt),
            text=self._text if params.stop_strings else None,
            constraint=constraint,
        )
        self._beams = self._make_rows()
        self._aborted = False
        self._error: EnginewrightError | None = None
        self._arrived = time.perf_counter()
        self._first_token_at: float | None = None
        self._finished_at: float | None = None

    @property
    def row_ids(self) -> Sequence[int]:
        return self.request.row_ids

    def first_row(self) -> Row:
        return self._beams.live[0]

    def accept(self, scheduler: Scheduler, logits: Mapping[int, RowLogits]) -> None:
        rows = [np.asarray(logits[row.id]) for row in self._beams.live]
        assert len(rows) == len(logits), "the beams of a search step together"
        try:
            branches = self._search.step(rows)
        except EnginewrightError as error:
            self._error, branches = error, []
        self._first_token_at = self._first_token_at or time.perf_counter()
        if branches:
            scheduler.branch(self._beams, branches)
        else:
            self._end(scheduler)

    def abort(self, scheduler: Scheduler) -> None:
        self._aborted = True
        self._end(scheduler)

    @property
    def finished(self) -> bool:
        return self._finished_at is not None

    @property
    def failed(self) -> bool:
        """Whether it came to no good end."""
        return self._error is not None

    @property
    def error(self) -> EnginewrightError | None:
        return self._error

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """The best beams so far, best first; none of a search that failed."""
        return [] if self.failed else self._search.hypotheses("abort" if self._aborted else None)

    @property
    def num_cached_tokens(self) -> int | None:
        """Tokens of the prompt that an earlier request had left in the cache."""
        return self._first.cached

    @property
    def metrics(self) -> RequestMetrics:
        return RequestMetrics(
            arrival_time=self._arrived,
            first_scheduled_time=self._first.admitted_at,
            first_token_time=self._first_token_at,
            finished_time=self._finished_at,
        )

    def text_of(self, token_ids: Sequence[int]) -> str:
        """The text of a beam without the prompt, cut at its stop string."""
        text = self._text.fork()
        for token in self._shown(token_ids):
            text.push(token)
            if text.stop_reason is not None:
                break
        text.finish()
        return text.text

    def whole_text_of(self, hypothesis: Hypothesis) -> str:
        """The text of prompt and beam."""
        prompt, skip = self.request.prompt_token_ids, self.request.params.skip_special_tokens
        token_ids = hypothesis.token_ids
        if isinstance(hypothesis.ending.stop_reason, str):
            return self._tokenizer.decode(prompt, skip) + self.text_of(token_ids)
        return self._tokenizer.decode([*prompt, *self._shown(token_ids)], skip)

    def token_text(self, token_id: int) -> str:
        """The text of a token by itself."""
        return self._tokenizer.decode([token_id], skip_special_tokens=False)

    def _shown(self, token_ids: Sequence[int]) -> Sequence[int]:
        """EOS shows only where the stop is asked for: not every tokenizer calls it special."""
        hidden = token_ids[-1:] and token_ids[-1] in self._eos
        if hidden and not self.request.params.include_stop_str_in_output:
            return token_ids[:-1]
        return token_ids

    def _make_rows(self) -> BeamRows:
        prompt, width = self.request.prompt_token_ids, self.request.params.beam_width
        self._first = Row(
            self.request.row_ids[0],
            list(prompt),
            exact=True,
            rows=width,
            length=len(prompt) + self._search.max_tokens,
        )
        others = [Row(row, list(prompt), exact=True) for row in self.request.row_ids[1:]]
        return BeamRows([self._first, *others])

    def _end(self, scheduler: Scheduler) -> None:
        scheduler.remove_beams(self._beams)
        self._finished_at = time.perf_counter()
