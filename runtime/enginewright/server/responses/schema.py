"""What /openapi.json says of a Responses answer."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class ResponseAnswer(BaseModel):
    """The fields that are always there; ``output`` holds messages, thoughts and calls."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: str = "response"
    created_at: int
    status: str
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
