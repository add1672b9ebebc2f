"""POST /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from enginewright.server.context import context_of
from enginewright.server.endpoints.documented import answers
from enginewright.server.field_names import beneath, called
from enginewright.server.protocol.completions import CompletionRequest, CompletionResponse
from enginewright.server.serving.completions import complete, completion_chunks, read_completion
from enginewright.server.sse import started, unless_gone
from enginewright.server.wire import json_response

router = APIRouter(tags=["OpenAI"])


@router.post(
    "/v1/completions", response_model=None, responses=answers(CompletionResponse, stream=True)
)
async def create_completion(request: CompletionRequest, raw: Request) -> Response:
    """Continue a prompt, or each of several."""
    context = context_of(raw)
    with called(beneath(request)):
        call, echo = await read_completion(request, raw, context)
        if request.stream:
            return await started(raw, completion_chunks(call, echo), context.life)
        return json_response(await unless_gone(raw, complete(call, echo), context.life))
