"""The application: what it answers, and what every request goes through."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware.cors import CORSMiddleware

from enginewright.server.access_log import AccessLog
from enginewright.server.auth import Authentication, read_keys
from enginewright.server.context import Context
from enginewright.server.endpoints import chat, completions, health, models, tokenize
from enginewright.server.error_answers import install
from enginewright.server.life import Life, RefuseWhileDraining
from enginewright.server.limits import BodyLimit, BodyTime
from enginewright.server.messages import endpoint as messages
from enginewright.server.metrics import Metrics
from enginewright.server.options import ServeOptions
from enginewright.server.page import endpoint as page
from enginewright.server.registry import ServedModels
from enginewright.server.responses import endpoint as responses


def build_app(options: ServeOptions, served: ServedModels, life: Life | None = None) -> FastAPI:
    """The application over engines that are open; it closes them at its end."""
    life = life or Life.of(options)
    app = FastAPI(
        title="Enginewright",
        version=importlib.metadata.version("enginewright"),
        docs_url=None if options.disable_docs else "/docs",
        redoc_url=None,
        openapi_url=None if options.disable_docs else "/openapi.json",
        lifespan=_lifespan,
    )
    app.state.context = Context(options, served, Metrics(served), life)
    for each in (completions, chat, responses, messages, models, tokenize, health, page):
        app.include_router(each.router)
    if options.enable_tokenizer_info_endpoint:
        app.include_router(tokenize.info_router)
    install(app)
    _add_middleware(app, options, life)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.context.models.close()


def _add_middleware(app: FastAPI, options: ServeOptions, life: Life) -> None:
    """The last one added is the first that a request meets."""
    app.add_middleware(BodyLimit, most=options.max_body_bytes)
    app.add_middleware(BodyTime, seconds=options.longest_upload)
    keys = read_keys(options)
    if keys:
        app.add_middleware(Authentication, keys=keys)
    app.add_middleware(RefuseWhileDraining, life=life)
    if options.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.allowed_origins,
            allow_methods=options.allowed_methods,
            allow_headers=options.allowed_headers,
            allow_credentials=options.allow_credentials,
        )
    app.add_middleware(AccessLog, log=options.access_log, headers=options.enable_request_id_headers)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's, but for 422: a body that does not fit is answered by 400."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema
