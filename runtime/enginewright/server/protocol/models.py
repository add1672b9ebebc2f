"""GET /v1/models, GET /version, and errors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class ModelCard(BaseModel):
    """One name under which a model is served; ``root`` is the first of its names."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "enginewright"
    root: str
    parent: str | None = None
    max_model_len: int
    permission: list[dict[str, Any]] = Field(default_factory=list)


class ModelList(BaseModel):
    """All of them."""

    object: str = "list"
    data: list[ModelCard]


class Version(BaseModel):
    """Of this server."""

    version: str


class ErrorInfo(BaseModel):
    """What went wrong; ``code`` is the status, ``param`` the field."""

    message: str
    type: str
    param: str | None = None
    code: int


class ErrorResponse(BaseModel):
    """Every error but the lack of a key."""

    error: ErrorInfo
