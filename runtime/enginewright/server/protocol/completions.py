"""POST /v1/completions."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from enginewright.server.protocol.common import GenerationRequest, Prompt


class CompletionRequest(GenerationRequest):
    """Text to continue; ``prompt`` is a text, token ids, or a list of either."""

    prompt: Prompt
    max_tokens: int | None = 16
    echo: bool | None = False
    logprobs: int | None = None
    suffix: str | None = None
    best_of: int | None = None
    add_special_tokens: bool | None = True


class CompletionLogprobs(BaseModel):
    """One item a token; the first of an echoed prompt has no log probability."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(BaseModel):
    """One output."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | None = 0
    prompt_tokens_details: dict[str, int] | None = None
    completion_tokens_details: dict[str, int] | None = None


class CompletionResponse(BaseModel):
    """The answer; a stream has the same without usage in each event."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None
