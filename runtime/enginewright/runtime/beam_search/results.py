"""What a beam search found, as vLLM's BeamSearchOutput or as a RequestOutput."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from enginewright.runtime.beam_search.hypotheses import Hypothesis, Link
from enginewright.runtime.beam_search.job import BeamJob
from enginewright.runtime.beam_search.outputs import BeamSearchOutput, BeamSearchSequence
from enginewright.runtime.requests.outputs import CompletionOutput, Logprob, RequestOutput


def beam_output(job: BeamJob) -> BeamSearchOutput:
    """The beams with their prompt."""
    logprobs = _Logprobs(job)
    sequences = [_sequence(job, each, logprobs) for each in job.hypotheses]
    return BeamSearchOutput(sequences, error=job.error, metrics=job.metrics)


def request_output(job: BeamJob) -> RequestOutput:
    """The beams without their prompt, as the outputs of a request."""
    request, logprobs = job.request, _Logprobs(job)
    completions = [
        CompletionOutput(
            index=index,
            text=job.text_of(each.token_ids),
            token_ids=each.token_ids,
            cumulative_logprob=each.cumulative_logprob,
            logprobs=logprobs.of(each),
            finish_reason=each.ending.reason,
            stop_reason=each.ending.stop_reason,
        )
        for index, each in enumerate(job.hypotheses)
    ]
    if job.error is not None:
        completions = [_failed(str(job.error))]
    return RequestOutput(
        request_id=str(request.row_ids[0]),
        prompt=request.prompt,
        prompt_token_ids=list(request.prompt_token_ids),
        prompt_logprobs=None,
        outputs=completions,
        finished=job.finished,
        metrics=job.metrics,
        num_cached_tokens=job.num_cached_tokens,
        error=job.error,
    )


def _sequence(job: BeamJob, found: Hypothesis, logprobs: _Logprobs) -> BeamSearchSequence:
    prompt_ids, token_ids = list(job.request.prompt_token_ids), found.token_ids
    prompt: dict[str, Any] = {"prompt_token_ids": prompt_ids}
    if job.request.prompt is not None:
        prompt["prompt"] = job.request.prompt
    return BeamSearchSequence(
        orig_prompt=prompt,
        tokens=prompt_ids + token_ids,
        logprobs=logprobs.of(found),
        cum_logprob=found.cumulative_logprob,
        text=job.whole_text_of(found),
        finish_reason=found.ending.reason,
        stop_reason=found.ending.stop_reason,
        generated_token_ids=token_ids,
        generated_text=job.text_of(token_ids),
        score=found.score,
    )


class _Logprobs:
    """Log probabilities along beams; what beams have in common is made once."""

    def __init__(self, job: BeamJob) -> None:
        self._count = 2 * job.request.params.beam_width
        self._text = lru_cache(None)(job.token_text)
        self._made: dict[int, dict[int, Logprob]] = {}

    def of(self, found: Hypothesis) -> list[dict[int, Logprob]]:
        return [self._at(link) for link in found.links]

    def _at(self, link: Link) -> dict[int, Logprob]:
        if id(link) not in self._made:
            self._made[id(link)] = {
                token: Logprob(value, rank, self._text(token))
                for token, (value, rank) in link.scores(self._count).items()
            }
        return self._made[id(link)]


def _failed(why: str) -> CompletionOutput:
    return CompletionOutput(0, "", [], finish_reason="error", stop_reason=why)
