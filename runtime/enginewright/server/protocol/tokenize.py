"""POST /tokenize, POST /detokenize, GET /tokenizer_info."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from enginewright.server.protocol.chat import Message, Tool


class TokenizeRequest(BaseModel):
    """A text, or a conversation that goes through the chat template."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: list[Tool] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeResponse(BaseModel):
    """``token_strs``: as they are spelt in the vocabulary, where they were asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(BaseModel):
    """Ids whose text is wanted."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    tokens: Annotated[list[int], Field(max_length=2**20)]


class DetokenizeResponse(BaseModel):
    """Their text."""

    prompt: str
