"""A Messages request, and the chat request that asks the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from enginewright.runtime.errors import RequestError
from enginewright.server.chat_body import chat_request
from enginewright.server.errors import FieldError
from enginewright.server.protocol.chat import ChatRequest

JSON = dict[str, Any]

_SAME = ("model", "temperature", "top_p", "top_k", "stream")
_HINTS = ("cache_control", "context_management", "inference_geo", "metadata", "speed")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class CountRequest(BaseModel):
    """What ``count_tokens`` takes."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str
    messages: list[JSON] = Field(min_length=1)
    system: str | list[JSON] | None = None
    tools: list[JSON] | None = None
    tool_choice: JSON | None = None
    thinking: JSON | None = None
    output_config: JSON | None = None

    def to_chat(self) -> ChatRequest:
        """The chat request."""
        return chat_request(self._chat(), _known_extra(self.model_extra))

    def _chat(self) -> JSON:
        chat: JSON = {"model": self.model, "messages": _messages(self.system, self.messages)}
        last = chat["messages"][-1]
        if last["role"] == "assistant" and last.get("content") and "tool_calls" not in last:
            chat |= {"add_generation_prompt": False, "continue_final_message": True}
        if self.tools:
            chat["tools"] = [_tool(at, tool) for at, tool in enumerate(self.tools)]
            chat |= _tool_choice(self.tool_choice or {"type": "auto"})
        if self.thinking is not None:
            chat["chat_template_kwargs"] = {"enable_thinking": _thinks(self.thinking)}
        config = self.output_config or {}
        if config.get("format"):
            schema = {"name": "output", "schema": config["format"].get("schema")}
            chat["response_format"] = {"type": "json_schema", "json_schema": schema}
        return chat


class MessagesRequest(CountRequest):
    """The fields of Anthropic's API that are served; those of one type, None, are refused.

    Hints to Anthropic's own service have no effect. What else there is goes to the chat request,
    which has vLLM's sampling fields.
    """

    max_tokens: int = Field(ge=1)
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool | None = None
    container: None = None
    mcp_servers: None = None

    def _chat(self) -> JSON:
        chat = super()._chat()
        chat |= {name: getattr(self, name) for name in _SAME if getattr(self, name) is not None}
        chat["max_completion_tokens"] = self.max_tokens
        if self.stop_sequences:
            chat["stop"] = self.stop_sequences
        if self.stream:
            chat["stream_options"] = {"include_usage": True}
        return chat


def _thinks(thinking: JSON) -> bool:
    kind = thinking.get("type")
    if kind not in ("enabled", "disabled"):
        raise FieldError(
            "thinking", f"thinking.type={kind!r:.80} is not legal: 'enabled' or 'disabled'"
        )
    for name in thinking.keys() - {"type"}:
        raise FieldError("thinking", f"thinking.{name:.80} has no effect here: leave it out")
    return bool(kind == "enabled")


def _known_extra(extra: Mapping[str, Any] | None) -> JSON:
    return {name: value for name, value in (extra or {}).items() if name not in _HINTS}


def _messages(system: str | list[JSON] | None, given: list[JSON]) -> list[JSON]:
    messages: list[JSON] = []
    if system:
        messages.append({"role": "system", "content": _text(system, "system")})
    for at, message in enumerate(given):
        where = f"messages[{at}]"
        role, content = message.get("role"), message.get("content")
        if role == "user":
            messages += _of_user(content, where)
        elif role == "assistant":
            messages.append(_of_assistant(content, where))
        elif role == "system":
            messages.append({"role": "system", "content": _text(content, where)})
        else:
            raise RequestError(f"{where}.role={role!r:.80} is not legal: 'user' or 'assistant'")
    return messages


def _of_user(content: Any, where: str) -> list[JSON]:
    """Results of tools first, each a message of its own, as chat templates want them."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results, rest = [], []
    for at, block in enumerate(_blocks(content, where)):
        if block["type"] != "tool_result":
            rest.append(block)
            continue
        text = _text(block.get("content") or "", f"{where}.content[{at}].content")
        results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text})
    if rest or not results:
        results.append({"role": "user", "content": _text(rest, f"{where}.content")})
    return results


def _of_assistant(content: Any, where: str) -> JSON:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts: list[JSON] = []
    message: JSON = {"role": "assistant"}
    for at, block in enumerate(_blocks(content, where)):
        if block["type"] == "tool_use":
            message.setdefault("tool_calls", []).append(_call(block, f"{where}.content[{at}]"))
        elif block["type"] == "thinking":
            message["reasoning"] = message.get("reasoning", "") + str(block.get("thinking", ""))
        elif block["type"] != "redacted_thinking":
            texts.append(block)
    if texts or "tool_calls" not in message:
        message["content"] = _text(texts, f"{where}.content")
    return message


def _call(block: JSON, where: str) -> JSON:
    name, given = block.get("name"), block.get("input", {})
    if not isinstance(name, str) or not isinstance(given, dict):
        raise RequestError(f"{where} must have a name and an input that is an object")
    arguments = json.dumps(given, ensure_ascii=False)
    return {
        "id": block.get("id"),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _blocks(content: Any, where: str) -> list[JSON]:
    if isinstance(content, list) and all(
        isinstance(each, Mapping) and isinstance(each.get("type"), str) for each in content
    ):
        return content
    raise RequestError(f"{where}.content must be text or a list of blocks, not {content!r:.80}")


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for at, block in enumerate(_blocks(content, where)):
        if block["type"] != "text" or not isinstance(block.get("text"), str):
            raise RequestError(
                f"{where}[{at}] is of type {block['type']!r:.80}: this engine takes text only"
            )
        texts.append(block["text"])
    return "\n".join(texts)


def _tool(at: int, tool: JSON) -> JSON:
    if tool.get("type") not in (None, "custom"):
        raise RequestError(
            f"tools[{at}].type={tool['type']!r:.80} is not served: there are the caller's own only"
        )
    name = tool.get("name")
    if not isinstance(name, str):
        raise RequestError(f"tools[{at}].name={name!r:.80} is not legal: it must be text")
    function = {"name": name, "parameters": tool.get("input_schema")}
    if tool.get("description"):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _tool_choice(choice: JSON) -> JSON:
    kind = choice.get("type")
    chat: JSON = {}
    if choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False
    if kind == "tool" and isinstance(choice.get("name"), str):
        return chat | {"tool_choice": {"type": "function", "function": {"name": choice["name"]}}}
    if kind not in _CHOICES:
        raise RequestError(
            f"tool_choice={choice!r:.80} is not legal: its type is 'auto', 'any', 'none', or "
            f"'tool' with a name"
        )
    return chat | {"tool_choice": _CHOICES[kind]}
