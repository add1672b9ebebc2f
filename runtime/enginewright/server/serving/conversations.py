"""How a conversation of a request reaches the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from enginewright.server.context import Context
from enginewright.server.errors import FieldError
from enginewright.server.protocol.chat import ChatRequest
from enginewright.server.protocol.tokenize import TokenizeRequest
from enginewright.server.registry import ServedModel

_TEXT_PARTS = {"input_text": "text", "output_text": "text", "refusal": "refusal"}


def template_options(
    request: ChatRequest | TokenizeRequest,
    model: ServedModel,
    context: Context,
    tools: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Options of a chat; a template of the request is taken only where the server allows it."""
    found: dict[str, Any] = {
        "add_generation_prompt": request.add_generation_prompt is not False,
        "continue_final_message": bool(request.continue_final_message),
        "tools": list(tools) or None,
        "chat_template_kwargs": _arguments(request),
    }
    if request.chat_template is not None:
        if not context.options.trust_request_chat_template:
            raise FieldError(
                "chat_template",
                "chat_template in requests is refused: the server was started without "
                "trust_request_chat_template",
            )
        found["chat_template"] = model.engine.requests.templates.once(request.chat_template)
    return found


def _arguments(request: ChatRequest | TokenizeRequest) -> dict[str, Any] | None:
    found = dict(request.chat_template_kwargs or {})
    if isinstance(request, ChatRequest):
        if request.documents is not None:
            found.setdefault("documents", request.documents)
        if request.reasoning_effort is not None:
            found.setdefault("reasoning_effort", request.reasoning_effort)
    return found or None


def template_messages(
    messages: Sequence[Mapping[str, Any]], template: str | None
) -> list[dict[str, Any]]:
    """With the spellings of newer clients in the words that templates know.

    The role "developer" is "system" to a template that does not name it.
    """
    knows = "developer" in (template or "")
    found = []
    for message in messages:
        changed = dict(message)
        if changed.get("role") == "developer" and not knows:
            changed["role"] = "system"
        if isinstance(changed.get("content"), list):
            changed["content"] = [_part(part) for part in changed["content"]]
        found.append(changed)
    return found


def _part(part: Any) -> Any:
    """Parts that are text under another name."""
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in _TEXT_PARTS:
        return {"type": "text", "text": part.get(_TEXT_PARTS[kind])}
    return part
