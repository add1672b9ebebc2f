"""What LLM does of beam searches: checks, jobs, and running them on the core."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from enginewright.runtime.beam_search.job import BeamJob, BeamRequest
from enginewright.runtime.beam_search.params import BeamSearchParams
from enginewright.runtime.beam_search.search import Constraint
from enginewright.runtime.engine import EngineInfo
from enginewright.runtime.errors import SamplingParamsError
from enginewright.runtime.requests import running
from enginewright.runtime.sampling.checks import whole
from enginewright.runtime.sampling.structured import StructuredOutputsParams
from enginewright.runtime.scheduling.core import EngineCore
from enginewright.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class BeamJobs:
    """Makes the beam jobs of a loaded engine.

    ``numbers``: for rows, none given twice. ``read``: a prompt in any form, and max_tokens -> its
    text, if it has one, and ids that fit the engine. ``constrain``: the constraint of a prompt's
    first token.
    """

    tokenizer: Tokenizer
    info: EngineInfo
    eos_token_ids: Collection[int]
    numbers: Iterator[int]
    read: Callable[[Any, int], tuple[str | None, Sequence[int]]]
    constrain: Callable[[StructuredOutputsParams], Constraint]

    def take_rows(self, params: BeamSearchParams) -> list[int]:
        """The numbers of a job's rows; RequestError if the engine cannot run so many."""
        self._check(params)
        return [next(self.numbers) for _ in range(params.beam_width)]

    def make(
        self, prompt: Any, params: BeamSearchParams, rows: Sequence[int] | None = None
    ) -> BeamJob:
        """The job of one prompt; ``rows``: those that were taken for it."""
        rows = rows or self.take_rows(params)
        text, token_ids = self.read(prompt, params.max_tokens)
        form = params.structured_outputs
        return BeamJob(
            BeamRequest(tuple(rows), text, tuple(token_ids), params),
            self.tokenizer,
            vocab_size=self.info.vocab_size,
            max_context=self.info.max_context,
            eos_token_ids=self.eos_token_ids,
            constraint=None if form is None else self.constrain(form),
        )

    def _check(self, params: Any) -> None:
        if not isinstance(params, BeamSearchParams):
            raise SamplingParamsError(f"params={params!r:.80}: give a BeamSearchParams")
        rows = min(self.info.max_batch, self.info.steps.decode)
        if params.beam_width > rows:
            raise SamplingParamsError(
                f"beam_width={params.beam_width}: each beam is a row, and this engine runs "
                f"{rows}; lower beam_width, or raise max_batch (at most the artifact's own)"
            )


def run(core: EngineCore, jobs: Sequence[BeamJob], concurrency_limit: int | None = None) -> None:
    """Run the jobs to their ends, ``concurrency_limit`` at a time.

    When all fail, the first one's error is raised; else a job that fails harms no other.
    """
    size = len(jobs)
    if concurrency_limit is not None:
        size = whole("concurrency_limit", concurrency_limit, 1, otherwise="None")
    for start in range(0, len(jobs), max(size, 1)):
        part = jobs[start : start + size]
        running.enqueue(core, part)
        running.complete(core, part)
    running.tell_errors(jobs, "beam search")


def warn_of_generate() -> None:
    """``generate`` was given BeamSearchParams; blames the caller of LLM."""
    warnings.warn(
        "generate() with BeamSearchParams: call LLM.beam_search(prompts, params), whose "
        "results are BeamSearchOutputs",
        DeprecationWarning,
        stacklevel=3,
    )
