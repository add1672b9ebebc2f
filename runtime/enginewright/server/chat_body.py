"""The chat request that another API's request becomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from enginewright.server.errors import FieldError
from enginewright.server.protocol.chat import ChatRequest

_OF_CHAT = frozenset(
    {
        "add_generation_prompt",
        "continue_final_message",
        "echo",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "n",
        "prompt_logprobs",
        "response_format",
        "return_token_ids",
        "use_beam_search",
    }
)


def chat_request(body: Mapping[str, Any], extra: Mapping[str, Any] | None) -> ChatRequest:
    """``extra``: what the request has beyond its own API; fields of chat alone are refused."""
    for name in _OF_CHAT & (extra or {}).keys():
        raise FieldError(name, f"{name} is a field of /v1/chat/completions: leave it out here")
    given = {name: value for name, value in body.items() if value is not None}
    try:
        return ChatRequest.model_validate({**(extra or {}), **given})
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
