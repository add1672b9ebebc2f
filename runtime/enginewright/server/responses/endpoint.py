"""POST /v1/responses. Nothing is stored: an earlier response cannot be asked for or built upon."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from enginewright.server.context import context_of
from enginewright.server.endpoints.documented import ERRORS, answers
from enginewright.server.errors import Failure
from enginewright.server.field_names import RESPONSES, called
from enginewright.server.named_events import build_whole, encoded, events_of
from enginewright.server.responses.answer import ResponseBuilder
from enginewright.server.responses.request import ResponsesRequest
from enginewright.server.responses.schema import ResponseAnswer
from enginewright.server.serving.chat import read_chat
from enginewright.server.sse import started, unless_gone
from enginewright.server.wire import json_response

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/responses", response_model=None, responses=answers(ResponseAnswer, stream=True))
async def create_response(request: ResponsesRequest, raw: Request) -> Response:
    """Answer an input: text, messages, calls and their results."""
    context = context_of(raw)
    with called(RESPONSES if request.text else RESPONSES | {"structured_outputs": "tools"}):
        chat = await read_chat(request.to_chat(), raw, context, "resp_")
        builder = ResponseBuilder(request, chat.call)
        if request.stream:

            def tell(failure: Failure) -> bytes:
                return encoded(builder.fail(failure.message))

            return await started(raw, events_of(chat, builder), context.life, tell)
        await unless_gone(raw, build_whole(chat, builder), context.life)
        return json_response(builder.response)


@router.get("/v1/responses/{response_id}", responses=ERRORS)
async def retrieve_response(response_id: str) -> None:
    """None is ever found: nothing is stored."""
    told = f"there is no response {response_id!r:.80}: this server stores none"
    raise HTTPException(404, told)
