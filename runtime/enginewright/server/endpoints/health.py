"""GET /health, /ready, /version, /metrics: for those who watch; no key is needed."""

from __future__ import annotations

import importlib.metadata

from fastapi import APIRouter
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from enginewright.server.context import context_of
from enginewright.server.endpoints.documented import ERRORS
from enginewright.server.errors import UnavailableError
from enginewright.server.protocol.models import Version

router = APIRouter(tags=["Operation"], responses=ERRORS)


@router.head("/health", include_in_schema=False)
@router.get("/health", response_class=Response)
async def health(raw: Request) -> Response:
    """Whether the process lives and no engine has failed; it need not take requests."""
    failed = [model.name for model in context_of(raw).models if model.engine.errored]
    if failed:
        raise UnavailableError(f"the engine of {', '.join(failed)} failed; start the server again")
    return Response(status_code=200)


@router.head("/ready", include_in_schema=False)
@router.get("/ready", response_class=Response)
async def ready(raw: Request) -> Response:
    """Whether requests are taken: every engine steps, and the server does not end."""
    context = context_of(raw)
    if context.life.draining:
        raise UnavailableError("the server is about to end and takes no more requests")
    gone = [model.name for model in context.models if not model.ready]
    if gone:
        raise UnavailableError(f"the engine of {', '.join(gone)} takes no requests")
    return Response(status_code=200)


@router.get("/version")
async def version() -> Version:
    """Of Enginewright."""
    return Version(version=importlib.metadata.version("enginewright"))


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(raw: Request) -> Response:
    """For Prometheus."""
    found = context_of(raw).metrics
    await found.refresh()
    return Response(generate_latest(found.registry), media_type=CONTENT_TYPE_LATEST)
