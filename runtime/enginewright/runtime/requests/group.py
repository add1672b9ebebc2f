"""The n outputs of one prompt: generations that run as rows of their own and are told as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from enginewright.runtime.engine import RowLogits
from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.requests.generation import Generation
from enginewright.runtime.requests.outputs import CompletionOutput, RequestMetrics, RequestOutput
from enginewright.runtime.sampling.kinds import RequestOutputKind
from enginewright.runtime.scheduling.job import Job, Logits
from enginewright.runtime.scheduling.row import Row
from enginewright.runtime.scheduling.scheduler import Scheduler
from enginewright.runtime.speculation.acceptance import verify


class RequestGroup(Job):
    """Generations of the same prompt and parameters, in the order of their index.

    The prompt is computed once: the logits after it are for all of them, and what its row has
    cached is forked.
    """

    def __init__(self, generations: Sequence[Generation]) -> None:
        assert [each.request.index for each in generations] == list(range(len(generations)))
        self.generations = tuple(generations)
        self._by_row = {each.request.id: each for each in generations}
        self._rows = {each.request.id: _row(each) for each in generations}
        self._first = self._rows[generations[0].request.id]
        self._told_final = False
        self._drafted = self._accepted = 0
        self._ended: list[Row] = []
        """Rows that ended within a draft: they leave when all drafts of the step are verified."""
        self._prompt_error: EnginewrightError | None = None

    @property
    def row_ids(self) -> Sequence[int]:
        return tuple(self._rows)

    def first_row(self) -> Row:
        return self._first

    @property
    def scored_row(self) -> int | None:
        """Of the outputs of one prompt, the first scores it."""
        return None if self.generations[0].prompt_scores is None else self._first.id

    def take_prompt(self, start: int, logits: Logits) -> None:
        scores = self.generations[0].prompt_scores
        assert scores is not None
        try:
            scores.take(start, logits)
        except EnginewrightError as error:
            self._prompt_error = error

    def accept(self, scheduler: Scheduler, logits: Mapping[int, RowLogits]) -> None:
        if self._prompt_error is not None:
            self._fail(scheduler, self._prompt_error)
            return
        ended, self._ended = self._ended, []
        scheduler.remove(ended)
        for row_id, values in logits.items():
            row = self._rows[row_id]
            begins = row is self._first and len(row.tokens) == row.prompt
            self._by_row[row_id].accept(values)
            if begins:
                self._fork(scheduler, values)
            self._go_on(scheduler, row)

    def draft_limit(self, row: int) -> int:
        return self._by_row[row].draft_limit

    def possible(self, row: int, draft: list[int]) -> list[int]:
        return self._by_row[row].possible(draft)

    def verify(
        self, scheduler: Scheduler, row: int, draft: Sequence[int], logits: Sequence[RowLogits]
    ) -> int:
        generation, its_row = self._by_row[row], self._rows[row]

        def choose(values: RowLogits) -> int | None:
            generation.accept(values)
            if generation.finished:
                return None
            its_row.tokens.append(generation.output_token_ids[-1])
            return its_row.tokens[-1]

        accepted = verify(draft, logits, choose)
        scheduler.keep(its_row, accepted)
        if generation.finished:
            self._ended.append(its_row)
        self._drafted += len(draft)
        self._accepted += accepted
        return accepted

    def abort(self, scheduler: Scheduler) -> None:
        for each in self.generations:
            each.abort()
        scheduler.remove(list(self._rows.values()))

    def _fail(self, scheduler: Scheduler, error: EnginewrightError) -> None:
        """The prompt cannot be scored: it is that of all outputs, and none has begun."""
        for each in self.generations:
            each.fail(error)
        scheduler.remove([self._first])

    def _fork(self, scheduler: Scheduler, logits: RowLogits) -> None:
        for generation in self.generations[1:]:
            generation.accept(logits)
            if not generation.finished:
                row = self._rows[generation.request.id]
                scheduler.fork(self._first, row, generation.output_token_ids[0])

    def _go_on(self, scheduler: Scheduler, row: Row) -> None:
        generation = self._by_row[row.id]
        if generation.finished:
            scheduler.remove([row])
        else:
            row.tokens.append(generation.output_token_ids[-1])

    @property
    def finished(self) -> bool:
        return all(each.finished for each in self.generations)

    @property
    def failed(self) -> bool:
        """Whether none of the outputs came to a good end."""
        return all(each.error is not None for each in self.generations)

    @property
    def error(self) -> EnginewrightError | None:
        """Of the first output that failed."""
        return next((each.error for each in self.generations if each.error is not None), None)

    def output(self) -> RequestOutput:
        """Everything so far."""
        return self._output([each.output() for each in self.generations])

    def news(self, kind: RequestOutputKind) -> RequestOutput | None:
        """What there is to tell one who follows the request; None: nothing yet, or no more."""
        if kind is RequestOutputKind.FINAL_ONLY:
            if not self.finished or self._told_final:
                return None
            self._told_final = True
            return self.output()
        deltas = [each.delta() for each in self.generations if each.has_news]
        if not deltas:
            return None
        return self._output(deltas) if kind is RequestOutputKind.DELTA else self.output()

    def _output(self, completions: list[CompletionOutput]) -> RequestOutput:
        first = self.generations[0]
        scores = first.prompt_scores
        return RequestOutput(
            request_id=str(first.request.id),
            prompt=first.request.prompt,
            prompt_token_ids=list(first.request.prompt_token_ids),
            outputs=completions,
            finished=self.finished,
            metrics=self._metrics(),
            error=self.error,
            num_cached_tokens=self._first.cached,
            prompt_logprobs=None if scores is None else scores.logprobs,
            prompt_token_id_logprobs=None if scores is None else scores.matrix,
        )

    def _metrics(self) -> RequestMetrics:
        first = [at for each in self.generations if (at := each.first_token_at) is not None]
        last = [at for each in self.generations if (at := each.finished_at) is not None]
        return RequestMetrics(
            arrival_time=min(each.arrived for each in self.generations),
            first_scheduled_time=self._first.admitted_at,
            first_token_time=min(first, default=None),
            finished_time=max(last) if self.finished else None,
            num_draft_tokens=self._drafted,
            num_accepted_tokens=self._accepted,
        )


def _row(generation: Generation) -> Row:
    request = generation.request
    return Row(
        request.id,
        list(request.prompt_token_ids),
        exact=generation.exact,
        reads_cache=request.params.reads_cache,
        index=request.index,
    )
