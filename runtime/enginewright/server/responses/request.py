"""A Responses request, and the chat request that asks the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from enginewright.runtime.errors import RequestError
from enginewright.server.chat_body import chat_request
from enginewright.server.protocol.chat import ChatRequest

JSON = dict[str, Any]

_SAME = ("model", "temperature", "top_p", "parallel_tool_calls", "stream", "user")
_LOGPROBS = "message.output_text.logprobs"
Included = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]
"""OpenAI's; most are of items that no answer of ours has."""
_TEXT_PARTS = ("input_text", "output_text", "text", "refusal")


class ResponsesRequest(BaseModel):
    """The fields of OpenAI's API that are served; those of one type, None, are refused.

    Fields that only say how to bill or to route have no effect. What else there is goes to the
    chat request, which has vLLM's sampling fields.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str | None = None
    input: str | list[JSON]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    tools: list[JSON] | None = None
    tool_choice: str | JSON = "auto"
    parallel_tool_calls: bool | None = None
    text: JSON | None = None
    reasoning: JSON | None = None
    include: list[Included] | None = None
    stream: bool | None = None
    metadata: dict[str, str] | None = None

    store: Literal[False] | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    max_tool_calls: None = None

    user: str | None = None
    stream_options: JSON | None = None

    def to_chat(self) -> ChatRequest:
        """The chat request."""
        chat: JSON = {name: getattr(self, name) for name in _SAME}
        chat["messages"] = _messages(self.instructions, self.input)
        chat["max_completion_tokens"] = self.max_output_tokens
        if self.tools:
            chat["tools"] = [_tool(at, tool) for at, tool in enumerate(self.tools)]
            chat["tool_choice"] = _tool_choice(self.tool_choice)
        if self.wants_logprobs:
            chat |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        if self.text:
            chat["response_format"] = _response_format(self.text.get("format"))
        if self.reasoning:
            chat["reasoning_effort"] = self.reasoning.get("effort")
        if self.stream:
            chat["stream_options"] = {"include_usage": True}
        return chat_request(chat, self.model_extra)

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer is to carry the log probabilities of its text."""
        return _LOGPROBS in (self.include or ()) or self.top_logprobs is not None


def _messages(instructions: str | None, given: str | list[JSON]) -> list[JSON]:
    messages: list[JSON] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    for at, item in enumerate(given):
        _add(messages, item, f"input[{at}]")
    for message in messages:
        if "tool_calls" not in message:
            message.setdefault("content", "")  # thoughts that nothing followed
    return messages


def _add(messages: list[JSON], item: JSON, where: str) -> None:
    """Add an item; what belongs to one turn of the assistant becomes one message."""
    kind = item.get("type", "message")
    last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    if kind == "message":
        message = _message(item, where)
        if message["role"] == "system" and messages and messages[-1]["role"] == "system":
            messages[-1]["content"] += "\n\n" + message["content"]
        elif message["role"] == "assistant" and last is not None and "content" not in last:
            last["content"] = message["content"]
        else:
            messages.append(message)
    elif kind == "reasoning":
        texts = item.get("content") or item.get("summary") or []
        thought = "".join(str(each.get("text", "")) for each in texts if isinstance(each, Mapping))
        messages.append({"role": "assistant", "reasoning": thought})
    elif kind == "function_call":
        if last is None:
            last = {"role": "assistant"}
            messages.append(last)
        last.setdefault("tool_calls", []).append(_call(item, where))
    elif kind == "function_call_output":
        text = _text(item.get("output"), f"{where}.output")
        call_id = _field(item, "call_id", where)
        messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
    else:
        raise RequestError(
            f"{where}.type={kind!r:.80} is not served: there are message, reasoning, "
            f"function_call and function_call_output"
        )


def _message(item: JSON, where: str) -> JSON:
    role = _field(item, "role", where)
    content = _text(item.get("content"), f"{where}.content")
    return {"role": "system" if role == "developer" else role, "content": content}


def _call(item: JSON, where: str) -> JSON:
    function = {name: _field(item, name, where) for name in ("name", "arguments")}
    return {"id": _field(item, "call_id", where), "type": "function", "function": function}


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where}={content!r:.80} is not legal: it must be text or a list")
    texts = []
    for at, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("refusal" if kind == "refusal" else "text") if kind else None
        if kind not in _TEXT_PARTS or not isinstance(text, str):
            raise RequestError(
                f"{where}[{at}] is of type {kind!r:.80}: this engine takes text only "
                f"(input_text, output_text)"
            )
        texts.append(text)
    return "\n".join(texts)


def _tool(at: int, tool: JSON) -> JSON:
    if tool.get("type") != "function":
        raise RequestError(
            f"tools[{at}].type={tool.get('type')!r:.80} is not served: there is 'function' only"
        )
    names = ("name", "description", "parameters")
    function = {name: tool[name] for name in names if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: str | JSON) -> str | JSON:
    if isinstance(choice, str):
        return choice
    if choice.get("type") == "function":
        return {"type": "function", "function": {"name": _field(choice, "name", "tool_choice")}}
    raise RequestError(
        f"tool_choice.type={choice.get('type')!r:.80} is not served: there are 'auto', 'none', "
        f"'required' and {{'type': 'function', 'name': ...}}"
    )


def _response_format(form: JSON | None) -> JSON | None:
    if not form or form.get("type") != "json_schema":
        return form or None
    inner = {name: value for name, value in form.items() if name != "type"}
    return {"type": "json_schema", "json_schema": inner}


def _field(item: JSON, name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise RequestError(f"{where}.{name}={value!r:.80} is not legal: it must be text")
    return value
