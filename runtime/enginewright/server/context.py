"""What every endpoint needs, in one object: models, options, measures, and the server's life."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from enginewright.server.life import Life
from enginewright.server.metrics import Metrics
from enginewright.server.options import ServeOptions
from enginewright.server.registry import ServedModels


@dataclass(frozen=True)
class Context:
    """Of one application."""

    options: ServeOptions
    models: ServedModels
    metrics: Metrics
    life: Life


def context_of(request: Request) -> Context:
    """That of the application which got the request."""
    context = request.app.state.context
    assert isinstance(context, Context)
    return context
