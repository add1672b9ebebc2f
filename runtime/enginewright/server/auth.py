"""Keys: what a client must send, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from enginewright.runtime.errors import EnginewrightError
from enginewright.server.error_answers import error_answer, is_anthropics
from enginewright.server.errors import Failure
from enginewright.server.options import ServeOptions
from enginewright.server.wire import json_response

ENVIRONMENT = "ENGINEWRIGHT_API_KEY"
GUARDED = ("/v1", "/v2", "/tokenize", "/detokenize", "/tokenizer_info", "/page/")
"""Beginnings of the paths that need a key; /health, /metrics and the like do not."""

_BEARER = b"bearer "


def read_keys(options: ServeOptions, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Of the options, the file, and the environment (several: one a line, or with commas)."""
    keys = [*options.api_key]
    if options.api_key_file is not None:
        try:
            keys += Path(options.api_key_file).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise EnginewrightError(
                f"{options.api_key_file}: no keys can be read ({error})"
            ) from error
    keys += environment.get(ENVIRONMENT, "").replace(",", "\n").splitlines()
    found = [key.strip() for key in keys if key.strip()]
    asked = options.api_key or options.api_key_file is not None or environment.get(ENVIRONMENT)
    if asked and not found:
        raise EnginewrightError("keys were asked for, and all that were given are empty")
    return found


class Authentication:
    """Middleware: 401 for a guarded path without a key.

    A key comes as ``Authorization: Bearer KEY``, or as ``x-api-key: KEY``.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] != "OPTIONS" and self._guards(scope):
            headers = dict(scope["headers"])
            given = headers.get(b"authorization", b"")
            key = given[len(_BEARER) :] if given[: len(_BEARER)].lower() == _BEARER else None
            if not self._knows(key if key is not None else headers.get(b"x-api-key", b"")):
                await _refusal(scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _guards(self, scope: Scope) -> bool:
        path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
        return path.startswith(GUARDED)

    def _knows(self, key: bytes) -> bool:
        digest = _digest(key.strip())
        # All are compared: the time must not tell which one it was.
        found = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(found)


def _refusal(scope: Scope) -> Response:
    if is_anthropics(scope):
        return error_answer(Failure(401, "Unauthorized"), scope)
    return json_response({"error": "Unauthorized"}, 401)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
