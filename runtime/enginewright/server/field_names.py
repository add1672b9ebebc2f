"""Errors name a field as the client's own request has it, where another name lies beneath it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fastapi.exceptions import RequestValidationError

from enginewright.runtime.errors import RequestError
from enginewright.server.errors import FieldError, field_of
from enginewright.server.protocol.chat import ChatRequest
from enginewright.server.protocol.common import GenerationRequest

RESPONSES = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "response_format": "text",
    "structured_outputs": "text",
    "logprobs": "top_logprobs",
}
MESSAGES = {
    "max_completion_tokens": "max_tokens",
    "response_format": "output_config",
    "structured_outputs": "output_config",
    "stop": "stop_sequences",
}


def beneath(request: GenerationRequest) -> dict[str, str]:
    """Of completions and chat: what stands for a field depends on what else was given."""
    found = {}
    if request.structured_outputs is None:
        tools = request.response_format is None
        found["structured_outputs"] = "tools" if tools else "response_format"
    if not isinstance(request, ChatRequest):
        return found
    if request.top_logprobs:
        found["logprobs"] = "top_logprobs"
    if request.max_completion_tokens is not None:
        found["max_tokens"] = "max_completion_tokens"
    return found


@contextmanager
def called(names: Mapping[str, str]) -> Iterator[None]:
    """Give errors that come from within the names of the client's request."""
    try:
        yield
    except RequestError as error:
        field = field_of(error) or ""
        if field not in names:
            raise
        told = re.sub(rf"\b{field}\b", names[field], str(error))
        raise FieldError(names[field], told) from error
    except RequestValidationError as error:
        raise RequestValidationError(
            [{**each, "loc": _place(each["loc"], names)} for each in error.errors()]
        ) from error


def _place(place: tuple[str | int, ...], names: Mapping[str, str]) -> tuple[str | int, ...]:
    return tuple(names.get(str(part), part) if at == 0 else part for at, part in enumerate(place))
