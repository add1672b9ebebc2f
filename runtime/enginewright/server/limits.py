"""The largest body: one that says it is larger is refused at once, another when it proves so."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enginewright.server.errors import Failure


class BodyLimit:
    """Middleware: 413 for a body of more than ``most`` bytes."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > self._most:
            await self._refusal().response()(scope, receive, send)
            return
        got = 0

        async def counting() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self._most:
                refusal = self._refusal()
                raise HTTPException(refusal.status, refusal.message, refusal.headers)
            return message

        await self._app(scope, counting, send)

    def _refusal(self) -> Failure:
        told = f"the body is larger than {self._most} bytes, which is what this server takes"
        return Failure(413, told, headers={"Connection": "close"})
