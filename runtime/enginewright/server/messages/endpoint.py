"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from enginewright.runtime.requests.arguments import Tokenization
from enginewright.server.context import context_of
from enginewright.server.endpoints.documented import EVENTS
from enginewright.server.error_answers import anthropic_body
from enginewright.server.errors import Failure, FieldError
from enginewright.server.field_names import MESSAGES, called
from enginewright.server.messages.answer import MessageBuilder
from enginewright.server.messages.errors import TOLD
from enginewright.server.messages.request import CountRequest, MessagesRequest
from enginewright.server.messages.schema import MessageAnswer, TokenCount
from enginewright.server.named_events import build_whole, encoded, events_of
from enginewright.server.registry import ServedModel
from enginewright.server.serving.chat import read_chat
from enginewright.server.serving.conversations import template_messages, template_options
from enginewright.server.sse import started, unless_gone
from enginewright.server.wire import json_response

router = APIRouter(tags=["Anthropic"], responses=TOLD)

_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"model": MessageAnswer, "description": "The answer", "content": EVENTS}
}


@router.post("/v1/messages", response_model=None, responses=_ANSWER)
async def create_message(request: MessagesRequest, raw: Request) -> Response:
    """Answer a conversation."""
    context = context_of(raw)
    with called(MESSAGES):
        chat = await read_chat(request.to_chat(), raw, context, "msg_")
        _check_thinking(request, chat.call.model)
        builder = MessageBuilder(chat.call.id, chat.call.name, len(chat.prompt.ids))
        if request.stream:
            return await started(raw, events_of(chat, builder), context.life, _tell)
        await unless_gone(raw, build_whole(chat, builder), context.life)
        return json_response(builder.message)


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: CountRequest, raw: Request) -> TokenCount:
    """How many tokens the conversation has, in this model's template."""
    context = context_of(raw)
    chat = request.to_chat()
    model = context.models.get(chat.model)
    requests = model.engine.requests
    options = template_options(chat, model, context, chat.tools_as_data())
    messages = template_messages(chat.messages, requests.templates.source)
    render = requests.renderer(Tokenization(add_special_tokens=False), **options)
    ids = await model.prepare(lambda: render(messages)["prompt_token_ids"])
    return TokenCount(input_tokens=len(ids))


def _check_thinking(request: MessagesRequest, model: ServedModel) -> None:
    if (request.thinking or {}).get("type") == "enabled" and model.reasoning_parser is None:
        raise FieldError("thinking", f"thinking: {model.name} has no thoughts that are told apart")


def _tell(failure: Failure) -> bytes:
    return encoded([anthropic_body(failure)])
