"""What a beam search gives back, with vLLM's names and some fields of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.requests.outputs import FinishReason, Logprob, RequestMetrics


@dataclass(frozen=True)
class BeamSearchSequence:
    """One beam. As in vLLM, ``tokens`` and ``text`` begin with the prompt."""

    orig_prompt: Mapping[str, Any]
    """``prompt_token_ids``, and ``prompt`` where the prompt came as text."""
    tokens: list[int]
    logprobs: list[dict[int, Logprob]]
    """For each generated token: the 2 * beam_width likeliest ones that could be chosen, and
    itself; ranks are None where only some tokens were allowed."""
    lora_request: None = None
    cum_logprob: float = 0.0
    """Sum of the generated tokens' log probabilities."""
    text: str | None = None
    finish_reason: FinishReason | None = None
    """stop: EOS, a stop token or stop string. length: max_tokens, or the context is full."""
    stop_reason: int | str | None = None
    """The stop token's id or the stop string; None for EOS."""
    generated_token_ids: list[int] = field(default_factory=list)
    """The tokens without the prompt; the one that ended the beam is the last."""
    generated_text: str = ""
    """The text without the prompt."""
    score: float = 0.0
    """What the beams are ordered by: ``cum_logprob`` under the length penalty."""


@dataclass(frozen=True)
class BeamSearchOutput:
    """The beams of one prompt, best first; at most ``beam_width``."""

    sequences: list[BeamSearchSequence]
    error: EnginewrightError | None = None
    """Why the search failed while it ran; others were not harmed."""
    metrics: RequestMetrics | None = field(default=None, compare=False)
