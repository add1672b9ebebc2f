"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from enginewright.server.protocol.common import GenerationRequest
from enginewright.server.protocol.completions import Usage

Message = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "required": ["role"],
            "properties": {
                "role": {"type": "string"},
                "content": {
                    "anyOf": [
                        {"type": "string"},
                        {"type": "null"},
                        {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["type", "text"],
                                "properties": {
                                    "type": {"const": "text"},
                                    "text": {"type": "string"},
                                },
                            },
                        },
                    ]
                },
                "name": {"type": "string"},
                "tool_calls": {"type": "array", "items": {"type": "object"}},
                "tool_call_id": {"type": "string"},
            },
        }
    ),
]


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Function(BaseModel):
    """What a model may call; ``parameters`` is a JSON schema."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    """A function, as clients wrap it."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"] = "function"
    function: Function


def tools_as_data(tools: list[Tool] | None) -> list[dict[str, Any]]:
    """As templates and parsers get them."""
    return [
        {"type": tool.type, "function": tool.function.model_dump(exclude_unset=True)}
        for tool in tools or ()
    ]


class NamedFunction(BaseModel):
    """Of a tool_choice."""

    name: str


class NamedTool(BaseModel):
    """A tool_choice that names a function."""

    type: Literal["function"] = "function"
    function: NamedFunction


class ChatRequest(GenerationRequest):
    """A conversation to go on with; ``max_tokens`` is the older name of its successor."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = True
    reasoning_effort: Effort | None = None
    include_reasoning: bool | None = True
    echo: bool | None = False
    add_generation_prompt: bool | None = True
    continue_final_message: bool | None = False
    add_special_tokens: bool | None = False
    documents: list[dict[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def tools_as_data(self) -> list[dict[str, Any]]:
        """As templates and parsers get them."""
        return tools_as_data(self.tools)


class FunctionCall(BaseModel):
    """``arguments`` is JSON text."""

    name: str
    arguments: str


class ToolCallAnswer(BaseModel):
    """A call that the model made."""

    id: str
    type: str = "function"
    function: FunctionCall


class AnswerMessage(BaseModel):
    """What was answered."""

    role: str
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallAnswer] | None = None


class ChatChoice(BaseModel):
    """One output."""

    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatResponse(BaseModel):
    """The answer."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    prompt_token_ids: list[int] | None = None
