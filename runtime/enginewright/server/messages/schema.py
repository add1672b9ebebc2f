"""What /openapi.json says of Anthropic's answers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class MessageAnswer(BaseModel):
    """A message; ``content`` holds text, thinking and tool_use blocks."""

    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: dict[str, Any]


class TokenCount(BaseModel):
    """How long the prompt is."""

    input_tokens: int


class AnthropicErrorInfo(BaseModel):
    """What went wrong."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """Every error's answer."""

    type: str = "error"
    error: AnthropicErrorInfo
