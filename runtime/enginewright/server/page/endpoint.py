"""GET /: the chat page, and what it asks beside the API: the parameters that would be in effect."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from enginewright.server.context import context_of
from enginewright.server.protocol.common import GenerationRequest
from enginewright.server.serving.sampling import sampling_params, tokens_to_make
from enginewright.server.wire import json_response

router = APIRouter(include_in_schema=False)

_INLINE = {"script-src": r"<script>(.*?)</script>", "style-src": r"<style>(.*?)</style>"}


class PageRequest(GenerationRequest):
    """What the page's fields say."""

    max_tokens: int | None = None


@router.get("/")
async def page() -> Response:
    """The page; a browser runs nothing but its own script, and asks nobody but this server."""
    html, policy = _page()
    return HTMLResponse(html, headers={"content-security-policy": policy})


@router.post("/page/parameters")
async def parameters(request: PageRequest, raw: Request) -> Response:
    """Every sampling parameter, and what set it."""
    requests = context_of(raw).models.get(request.model).engine.requests
    most = tokens_to_make(request.max_tokens, requests.defaults)
    params = sampling_params(request, requests.defaults, max_tokens=most, logprobs=None)
    given = dict.fromkeys(request.model_fields_set - {"model"}, "this page")
    told = requests.explain(params, given).as_dict()
    del told["output_kind"]
    return json_response(told)


@functools.cache
def _page() -> tuple[str, str]:
    """The HTML, and the policy that allows its own script and style alone."""
    html = files(__package__).joinpath("chat.html").read_text("utf-8")
    policy = ["default-src 'none'", "connect-src 'self'", "img-src data:", "frame-ancestors 'none'"]
    policy += ["base-uri 'none'", "form-action 'none'"]
    for directive, pattern in _INLINE.items():
        (inline,) = re.findall(pattern, html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        policy.append(f"{directive} 'sha256-{digest}'")
    return html, "; ".join(policy)
