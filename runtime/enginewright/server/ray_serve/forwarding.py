"""A request on its way from the ingress to an engine's replica, and its answer on the way back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import Message

from enginewright.server.inprocess import Headers, http_scope


@dataclass(frozen=True)
class Forwarded:
    """An HTTP request. ``prompt`` is what Ray's router compares with what replicas have seen."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    prompt: str

    def scope(self) -> dict[str, Any]:
        """As an ASGI application gets it."""
        return http_scope(self.method, self.path, self.query, list(self.headers))


@dataclass(frozen=True)
class Head:
    """How an answer begins; its body follows as bytes."""

    status: int
    headers: Headers

    @classmethod
    def of(cls, message: Message) -> Head:
        """Of ASGI's first message."""
        return cls(message["status"], [(bytes(k), bytes(v)) for k, v in message["headers"]])


Answer = AsyncIterator[Head | bytes]


def prompt_of(path: str, body: bytes) -> str:
    """The text that a request's prompt begins with; the path where there is none."""
    try:
        data = json.loads(body) if body else None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        return path
    found = [data.get(name) for name in ("system", "instructions", "messages", "prompt", "input")]
    return "\n".join(_texts([each for each in found if each is not None])) or path


def _texts(value: Any) -> Sequence[str]:
    """All text in it, in its order."""
    waiting, texts = [value], []
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, list):
            waiting += reversed(value)
        elif isinstance(value, dict):
            waiting += [value.get("text"), value.get("content"), value.get("role")]
        elif isinstance(value, int):
            texts.append(str(value))
    return texts
