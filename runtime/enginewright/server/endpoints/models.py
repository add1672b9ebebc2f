"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request

from enginewright.server.context import context_of
from enginewright.server.endpoints.documented import ERRORS
from enginewright.server.protocol.models import ModelCard, ModelList
from enginewright.server.registry import ServedModel

router = APIRouter(tags=["OpenAI"], responses=ERRORS)


@router.get("/v1/models")
async def list_models(raw: Request) -> ModelList:
    """Every name that a request may give."""
    return ModelList(data=[_card(name, model) for name, model in context_of(raw).models.names])


@router.get("/v1/models/{name:path}")
async def retrieve_model(name: str, raw: Request) -> ModelCard:
    """One of them."""
    if not name:  # which in a request's body would be the only model that there is
        raise HTTPException(404)
    return _card(name, context_of(raw).models.get(name))


def _card(name: str, model: ServedModel) -> ModelCard:
    return ModelCard(
        id=name, created=model.created, root=model.name, max_model_len=model.engine.max_context
    )
