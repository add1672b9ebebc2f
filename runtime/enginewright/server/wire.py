"""How answers are written: JSON without spaces, in UTF-8 whatever the text holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def to_json(value: Any) -> str:
    """The value's JSON text."""
    return _encode(value)


def to_bytes(text: str) -> bytes:
    """In UTF-8; half a surrogate pair, which a client may have sent, becomes a question mark."""
    return text.encode("utf-8", "replace")


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer with the value's JSON."""
    content = to_bytes(_encode(value))
    return Response(content, status, dict(headers or {}), media_type="application/json")
