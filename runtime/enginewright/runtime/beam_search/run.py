"""What LLM does of beam searches: checks, jobs, and running them on the core."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from enginewright.runtime.beam_search.job import BeamJob, BeamRequest
from enginewright.runtime.beam_search.params import BeamSearchParams
from enginewright.runtime.beam_search.search import Constraint
from enginewright.runtime.engine import EngineInfo
from enginewright.runtime.errors import SamplingParamsError
from enginewright.runtime.sampling.checks import whole
from enginewright.runtime.sampling.structured import StructuredOutputsParams
from enginewright.runtime.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class Core(Protocol):
    """What of EngineCore a beam search needs."""

    def add(self, job: BeamJob) -> None: ...

    def abort(self, jobs: Iterable[BeamJob]) -> None: ...

    def step(self) -> object: ...


@dataclass(frozen=True)
class BeamJobs:
    """Makes the beam jobs of a loaded engine.

    ``read``: a prompt in any form -> its text, if it has one, and ids that fit the engine.
    ``ids``: numbers for rows, none given twice. ``constrain``: the constraint of a prompt's first
    token; None where structured outputs cannot be had.
    """

    tokenizer: Tokenizer
    info: EngineInfo
    eos_token_ids: Collection[int]
    ids: Iterator[int]
    read: Callable[[Any], tuple[str | None, Sequence[int]]]
    constrain: Callable[[StructuredOutputsParams], Constraint] | None = None

    def make(self, prompt: Any, params: BeamSearchParams) -> BeamJob:
        """The job of one prompt; RequestError if it cannot be run."""
        self._check(params)
        text, token_ids = self.read(prompt)
        rows = tuple(next(self.ids) for _ in range(params.beam_width))
        return BeamJob(
            BeamRequest(rows, text, tuple(token_ids), params),
            self.tokenizer,
            vocab_size=self.info.vocab_size,
            max_context=self.info.max_context,
            eos_token_ids=self.eos_token_ids,
            constraint=self._constraint(params),
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

    def _constraint(self, params: BeamSearchParams) -> Constraint | None:
        if params.structured_outputs is None:
            return None
        if self.constrain is None:
            raise SamplingParamsError(
                "structured_outputs are not supported by beam search here: leave them at None"
            )
        return self.constrain(params.structured_outputs)


def run(core: Core, jobs: Sequence[BeamJob], concurrency_limit: int | None = None) -> None:
    """Run the jobs to their ends, ``concurrency_limit`` at a time.

    When all fail, the first one's error is raised; else a job that fails harms no other.
    """
    size = len(jobs)
    if concurrency_limit is not None:
        size = whole("concurrency_limit", concurrency_limit, 1, otherwise="None")
    for start in range(0, len(jobs), max(size, 1)):
        _run_together(core, jobs[start : start + size])
    errors = [job.error for job in jobs if job.error is not None]
    if errors and len(errors) == len(jobs):
        raise errors[0]
    for error in errors:
        logger.error("a beam search failed: %s", error)


def warn_of_generate() -> None:
    """``generate`` was given BeamSearchParams; blames the caller of LLM."""
    warnings.warn(
        "generate() with BeamSearchParams: call LLM.beam_search(prompts, params), whose "
        "results are BeamSearchOutputs",
        DeprecationWarning,
        stacklevel=3,
    )


def _run_together(core: Core, jobs: Sequence[BeamJob]) -> None:
    try:
        for job in jobs:
            core.add(job)
        while not all(job.finished for job in jobs):
            core.step()
    finally:
        core.abort(jobs)
