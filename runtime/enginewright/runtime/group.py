"""The n outputs of one prompt: generations that run as rows of their own and are told as one."""

from __future__ import annotations

from collections.abc import Sequence

from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.generation import Generation
from enginewright.runtime.outputs import CompletionOutput, RequestMetrics, RequestOutput
from enginewright.runtime.sampling.kinds import RequestOutputKind


class RequestGroup:
    """Generations of the same prompt and parameters, in the order of their index."""

    def __init__(self, generations: Sequence[Generation]) -> None:
        assert [each.request.index for each in generations] == list(range(len(generations)))
        self.generations = tuple(generations)
        self._told_final = False

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
            prompt_logprobs=None if scores is None else scores.logprobs,
            prompt_token_id_logprobs=None if scores is None else scores.matrix,
        )

    def _metrics(self) -> RequestMetrics:
        first = [at for each in self.generations if (at := each.first_token_at) is not None]
        last = [at for each in self.generations if (at := each.finished_at) is not None]
        return RequestMetrics(
            min(each.arrived for each in self.generations),
            min(first, default=None),
            max(last) if self.finished else None,
        )
