"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from enginewright.server.context import context_of
from enginewright.server.endpoints.documented import answers
from enginewright.server.field_names import beneath, called
from enginewright.server.protocol.chat import ChatRequest, ChatResponse
from enginewright.server.serving.chat import read_chat
from enginewright.server.serving.chat_answer import answer_chat, chat_chunks
from enginewright.server.sse import started, unless_gone
from enginewright.server.wire import json_response

router = APIRouter(tags=["OpenAI"])


@router.post(
    "/v1/chat/completions", response_model=None, responses=answers(ChatResponse, stream=True)
)
async def create_chat_completion(request: ChatRequest, raw: Request) -> Response:
    """Answer a conversation."""
    context = context_of(raw)
    with called(beneath(request)):
        chat = await read_chat(request, raw, context)
        if request.stream:
            return await started(raw, chat_chunks(chat), context.life)
        return json_response(await unless_gone(raw, answer_chat(chat), context.life))
