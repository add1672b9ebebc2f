"""POST /tokenize, POST /detokenize, GET /tokenizer_info."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.arguments import Tokenization
from enginewright.runtime.requests.prompts import check_ids
from enginewright.server.context import Context, context_of
from enginewright.server.endpoints.documented import ERRORS, answers
from enginewright.server.errors import FieldError
from enginewright.server.protocol.chat import tools_as_data
from enginewright.server.protocol.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from enginewright.server.registry import ServedModel
from enginewright.server.serving.conversations import template_messages, template_options
from enginewright.server.wire import json_response

router = APIRouter(tags=["Tokenizer"])
info_router = APIRouter(tags=["Tokenizer"])
"""Apart, for an option of the server turns it off."""


@router.post("/tokenize", response_model=None, responses=answers(TokenizeResponse))
async def tokenize(request: TokenizeRequest, raw: Request) -> Response:
    """The ids of a text, or of a conversation."""
    context = context_of(raw)
    model = context.models.get(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise FieldError("prompt", "prompt or messages must be given, and only one of them")
    ids = await model.prepare(lambda: _ids(request, model, context))
    answer: dict[str, Any] = {
        "count": len(ids),
        "max_model_len": model.engine.max_context,
        "tokens": ids,
    }
    if request.return_token_strs:
        surface = model.engine.get_tokenizer().surface
        answer["token_strs"] = [surface(token) or "" for token in ids]
    return json_response(answer)


@router.post("/detokenize", response_model=None, responses=answers(DetokenizeResponse))
async def detokenize(request: DetokenizeRequest, raw: Request) -> Response:
    """The text of ids."""
    model = context_of(raw).models.get(request.model)
    tokens = request.tokens
    if tokens:
        try:
            tokens = check_ids(tokens, model.engine.engine_info.vocab_size)
        except RequestError as error:
            raise FieldError("tokens", str(error)) from error
    decode = model.engine.get_tokenizer().decode
    text = await model.prepare(lambda: decode(tokens, skip_special_tokens=False))
    return json_response({"prompt": text})


@info_router.get("/tokenizer_info", responses=ERRORS)
async def tokenizer_info(raw: Request, model: str | None = None) -> dict[str, Any]:
    """What a client needs to make prompts like the server's."""
    served = context_of(raw).models.get(model)
    templates = served.engine.requests.templates
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **templates.tokens,
        "chat_template": templates.source,
        "model_max_length": served.engine.max_context,
        "vocab_size": served.engine.get_tokenizer().vocab_size,
    }


def _ids(request: TokenizeRequest, model: ServedModel, context: Context) -> list[int]:
    requests = model.engine.requests
    if request.prompt is not None:
        return requests.tokenizer.encode(request.prompt, request.add_special_tokens is not False)
    options = template_options(request, model, context, tools_as_data(request.tools))
    how = Tokenization.of({"add_special_tokens": bool(request.add_special_tokens)})
    messages = template_messages(request.messages or [], requests.templates.source)
    return list(requests.renderer(how, **options)(messages)["prompt_token_ids"])
