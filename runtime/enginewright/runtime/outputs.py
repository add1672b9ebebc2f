"""What a request gives back, with vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.errors import EnginewrightError

FinishReason = Literal["stop", "length", "repetition", "abort", "error"]
PromptLogprobs = list["dict[int, Logprob] | None"]


@dataclass(frozen=True)
class Logprob:
    """Log probability of a token, its rank from 1, and the token's text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(frozen=True)
class CompletionOutput:
    """One generated continuation; the prompt is not part of it."""

    index: int
    text: str
    token_ids: list[int]
    """All tokens, the one that ended the output included."""
    cumulative_logprob: float | None = None
    """Sum over the chosen tokens, when ``logprobs`` was asked for."""
    logprobs: list[dict[int, Logprob]] | None = None
    """For each token: itself and the likeliest ones (or ``logprob_token_ids``), when asked for."""
    finish_reason: FinishReason | None = None
    """stop: EOS, a stop token or stop string. length: max_tokens, or the context is full.
    repetition: see repetition_detection. abort: given up by the caller. error: see
    RequestOutput.error. None: still running."""
    stop_reason: int | str | None = None
    """The stop token's id or the stop string; "repetition_detected"; None for EOS."""

    def finished(self) -> bool:
        """Whether nothing more comes."""
        return self.finish_reason is not None


@dataclass(frozen=True)
class RequestMetrics:
    """Moments of ``time.perf_counter()``, in seconds; None when not reached."""

    arrival_time: float
    first_token_time: float | None = None
    finished_time: float | None = None


@dataclass(frozen=True)
class RequestOutput:
    """The answer to one request, or what there is of it so far."""

    request_id: str
    prompt: str | None
    """The prompt's text (after the chat template), None for a prompt of token ids."""
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    """In the order of their ``index``; as many as the parameter ``n`` says."""
    finished: bool
    metrics: RequestMetrics | None = None
    error: EnginewrightError | None = None
    """Why an output failed while it ran (finish_reason "error"); others were not harmed."""
    prompt_logprobs: PromptLogprobs | None = None
    """For each token of the prompt: None for the first, then itself and the likeliest ones, when
    ``prompt_logprobs`` was asked for."""
    prompt_token_id_logprobs: NDArray[np.float32] | None = field(default=None, compare=False)
    """Log probabilities [positions, ids] of ``prompt_logprob_token_ids``: row i is of the token
    after position ``prompt_logprob_start + i``."""
