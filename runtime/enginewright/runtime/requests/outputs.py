"""What a request gives back, with vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.errors import EnginewrightError

if TYPE_CHECKING:
    from enginewright.runtime.requests.flat_logprobs import FlatLogprobs

FinishReason = Literal["stop", "length", "repetition", "abort", "error"]
SampleLogprobs: TypeAlias = "list[dict[int, Logprob]] | FlatLogprobs"
PromptLogprobs: TypeAlias = "list[dict[int, Logprob] | None] | FlatLogprobs"


@dataclass(frozen=True)
class Logprob:
    """Log probability of a token, its rank from 1, and the token's text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """One generated continuation; the prompt is not part of it."""

    index: int
    text: str
    token_ids: list[int]
    """All tokens, the one that ended the output included."""
    cumulative_logprob: float | None = None
    """Sum over the chosen tokens, when ``logprobs`` was asked for."""
    logprobs: SampleLogprobs | None = None
    """For each token: itself and the likeliest ones (or ``logprob_token_ids``), when asked for."""
    routed_experts: None = None
    finish_reason: FinishReason | None = None
    """stop: EOS, a stop token or stop string. length: max_tokens, or the context is full.
    repetition: see repetition_detection. abort: given up by the caller. error: see
    RequestOutput.error. None: still running."""
    stop_reason: int | str | None = None
    """The stop token's id or the stop string; "repetition_detected"; None for EOS."""
    lora_request: None = None

    def finished(self) -> bool:
        """Whether nothing more comes."""
        return self.finish_reason is not None

    def extend(self, news: CompletionOutput) -> None:
        """Take in what came after this."""
        self.text += news.text
        self.token_ids += news.token_ids
        if self.logprobs is not None and news.logprobs is not None:
            self.logprobs.extend(news.logprobs)
        self.cumulative_logprob = news.cumulative_logprob
        self.finish_reason, self.stop_reason = news.finish_reason, news.stop_reason


@dataclass(frozen=True)
class RequestMetrics:
    """Moments of ``time.perf_counter()``, in seconds; None when not reached.

    And how many tokens were drafted for the request, and how many of them were right.
    """

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0


@dataclass
class RequestOutput:
    """The answer to one request, or what there is of it so far.

    Fields that are always None are there for code that was written for vLLM.
    """

    request_id: str
    prompt: str | None
    """The prompt's text (after the chat template), None for a prompt of token ids."""
    prompt_token_ids: list[int]
    prompt_logprobs: PromptLogprobs | None
    """For each token of the prompt: None for the first, then itself and the likeliest ones, when
    ``prompt_logprobs`` was asked for."""
    outputs: list[CompletionOutput]
    """In the order of their ``index``; as many as the parameter ``n`` says."""
    finished: bool
    metrics: RequestMetrics | None = None
    lora_request: None = None
    encoder_prompt: None = None
    encoder_prompt_token_ids: None = None
    num_cached_tokens: int | None = None
    """Tokens of the prompt that an earlier request had left in the cache."""
    error: EnginewrightError | None = None
    """Why an output failed while it ran (finish_reason "error"); others were not harmed."""
    prompt_token_id_logprobs: NDArray[np.float32] | None = field(default=None, compare=False)
    """Log probabilities [positions, ids] of ``prompt_logprob_token_ids``: row i is of the token
    after position ``prompt_logprob_start + i``."""
    kv_transfer_params: None = None

    def add(self, next_output: RequestOutput, aggregate: bool) -> None:
        """Take in a later output of the same request.

        ``aggregate``: both are deltas, and are joined; else the later one takes the place.
        """
        places = {completion.index: place for place, completion in enumerate(self.outputs)}
        for news in next_output.outputs:
            if news.index not in places:
                self.outputs.append(news)
            elif aggregate:
                self.outputs[places[news.index]].extend(news)
            else:
                self.outputs[places[news.index]] = news
        self.finished = self.finished or next_output.finished
        self.metrics, self.error = next_output.metrics, next_output.error
        self.num_cached_tokens = next_output.num_cached_tokens
        self.prompt_logprobs = next_output.prompt_logprobs
        self.prompt_token_id_logprobs = next_output.prompt_token_id_logprobs
