"""From start to end: what is common to all requests, and how the process ends.

SIGTERM or SIGINT: no new requests are taken, those that run go on for ``drain_timeout``, what is
left then is told so; the exit code is 0. A second signal ends at once.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enginewright.runtime.errors import EnginewrightError
from enginewright.server.error_answers import error_answer
from enginewright.server.errors import UnavailableError, failure_of
from enginewright.server.options import ServeOptions

if TYPE_CHECKING:
    from fastapi import FastAPI

_OPEN = ("/health", "/ready", "/metrics", "/version")
"""What is answered to the end, for those who watch."""


@dataclass
class Life:
    """``draining``: the server is about to end. Times are seconds, 0: none."""

    request_timeout: float = 0.0
    keep_alive_interval: float = 0.0
    draining: bool = False

    @classmethod
    def of(cls, options: ServeOptions) -> Life:
        """At the start."""
        return cls(options.request_timeout, options.sse_keep_alive_interval)

    def deadline(self) -> float | None:
        """When a request that begins now must have ended, by the loop's clock."""
        if not self.request_timeout:
            return None
        return asyncio.get_running_loop().time() + self.request_timeout


class RefuseWhileDraining:
    """Middleware: 503 once the server is about to end.

    For new requests on old connections, and for those that were given up before their answer began.
    """

    def __init__(self, app: ASGIApp, life: Life) -> None:
        self._app, self._life = app, life

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._life.draining and scope["path"] not in _OPEN:
            gone = UnavailableError("the server is about to end and takes no more requests")
            await error_answer(failure_of(gone), scope)(scope, receive, send)
            return
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except asyncio.CancelledError:
            if begun or not self._life.draining:
                raise
            await error_answer(failure_of(ending()), scope)(scope, receive, send)


def ending() -> UnavailableError:
    """What a request is told that the server's end cuts off."""
    return UnavailableError("the server ended before this request did; send it again")


class Server(uvicorn.Server):
    """uvicorn's, which notes that it drains, and for which a signal is a good end."""

    def __init__(self, config: uvicorn.Config, life: Life) -> None:
        super().__init__(config)
        self._life = life

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own would raise the signal again at the end: the exit code would not be 0.
        self.force_exit = self.should_exit
        self._life.draining = self.should_exit = True


def run(app: FastAPI, life: Life, options: ServeOptions, bound: socket.socket | None) -> None:
    """Listen and serve until a signal; raises EnginewrightError when it cannot listen.

    ``bound``: a Unix socket to listen on in place of host and port.
    """
    server = Server(uvicorn_config(app, options, bound), life)
    try:
        server.run()
    except SystemExit as error:  # uvicorn has logged why
        where = f"{options.host}:{options.port}"
        raise EnginewrightError(f"the server cannot listen on {where}, see above") from error


def uvicorn_config(
    app: Any, options: ServeOptions, bound: socket.socket | None = None
) -> uvicorn.Config:
    """What uvicorn is run with."""
    return uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        fd=None if bound is None else bound.fileno(),
        root_path=options.root_path,
        log_level=options.log_level,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        proxy_headers=False,
        timeout_keep_alive=options.timeout_keep_alive,
        # Said to be whole seconds, and only handed to asyncio, which takes parts of them.
        timeout_graceful_shutdown=options.drain_timeout,  # type: ignore[arg-type]
        ssl_keyfile=options.ssl_keyfile,
        ssl_certfile=options.ssl_certfile,
        ssl_ca_certs=options.ssl_ca_certs,
        ssl_cert_reqs=options.ssl_cert_reqs,
    )


SIGNALS = (signal.SIGINT, signal.SIGTERM)
