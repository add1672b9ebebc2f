"""Server-sent events: a stream of prepared bytes, which ends when its reader goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from enginewright.server.access_log import Record, record_of
from enginewright.server.errors import Failure, failure_of
from enginewright.server.life import Life, ending
from enginewright.server.wire import to_bytes, to_json

T = TypeVar("T")
Tell = Callable[[Failure], bytes]
"""Makes a stream's last events of what ended it."""

DONE = b"data: [DONE]\n\n"
_COMMENT = b": keep-alive\n\n"
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(value: Any) -> bytes:
    """One event with the value's JSON."""
    return to_bytes(f"data: {to_json(value)}\n\n")


def error_event(failure: Failure) -> bytes:
    """What a stream that has begun tells of an error, and its end."""
    return event(failure.body()) + DONE


class EventStream(Response):
    """Sends what a generator yields, each item in one piece. ``first``: its first item, on its way.

    The generator is closed when the reader goes away, when time is over, or when the server must
    end; a reader that is still there is told why.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: asyncio.Task[bytes],
        chunks: AsyncGenerator[bytes],
        life: Life,
        deadline: float | None,
        tell: Tell,
        record: Record,
    ) -> None:
        super().__init__(None, 200, dict(_HEADERS))
        del self.headers["content-length"]
        self._first, self._chunks, self._life = first, chunks, life
        self._deadline, self._tell, self._record = deadline, tell, record
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        sending = asyncio.ensure_future(self._send_all(send))
        beside = [asyncio.ensure_future(_gone(receive))]
        beside[0].add_done_callback(lambda _: sending.cancel())
        if self._life.keep_alive_interval:
            beside.append(asyncio.ensure_future(self._keep_alive(send)))
        try:
            await sending
        except asyncio.CancelledError:
            if beside[0].done():
                self._record.failed = failure_of(ClientDisconnect()).status
            elif self._life.draining:
                await send(_part(self._failed(ending())))
                await send(_part(b"", more=False))
            else:
                raise
        finally:
            for each in beside:
                each.cancel()

    async def _send_all(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout_at(self._deadline), contextlib.aclosing(self._chunks):
                await send(_part(await self._first))
                async for chunk in self._chunks:
                    self._sent_at = clock()
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Exception as error:  # noqa: BLE001 - the status is sent: the reader must hear
            await send(_part(self._failed(error)))
        await send(_part(b"", more=False))

    def _failed(self, error: BaseException) -> bytes:
        failure = failure_of(error)
        self._record.failed = failure.status
        return self._tell(failure)

    async def _keep_alive(self, send: Send) -> None:
        interval, clock = self._life.keep_alive_interval, asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(interval)
            if clock() - self._sent_at >= interval:
                await send(_part(_COMMENT))


async def started(
    request: Request, chunks: AsyncGenerator[bytes], life: Life, tell: Tell = error_event
) -> EventStream:
    """The stream, once its first item is there: what fails before that is an error by itself.

    With comments that keep it alive, it begins no later than the first of them is due.
    """
    deadline = life.deadline()
    first: asyncio.Task[bytes] = asyncio.ensure_future(anext(chunks))
    watch = asyncio.ensure_future(_gone(request.receive))
    try:
        async with asyncio.timeout_at(deadline):
            limit = life.keep_alive_interval or None
            await asyncio.wait((first, watch), timeout=limit, return_when="FIRST_COMPLETED")
        if first.done():
            first.result()
        elif watch.done():
            raise ClientDisconnect
    except BaseException as error:
        first.cancel()
        with contextlib.suppress(BaseException):
            await first
        await chunks.aclose()
        raise _told(error, life) from error
    finally:
        watch.cancel()
    return EventStream(first, chunks, life, deadline, tell, record_of(request))


async def unless_gone(request: Request, work: Coroutine[Any, Any, T], life: Life) -> T:
    """The work's result; it is given up when the client goes away or time is over."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(request.receive))
    try:
        async with asyncio.timeout_at(life.deadline()):
            await asyncio.wait((task, watch), return_when="FIRST_COMPLETED")
        if not task.done():
            raise ClientDisconnect
        return task.result()
    except asyncio.CancelledError as error:
        raise _told(error, life) from error
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _told(error: BaseException, life: Life) -> BaseException:
    """A request that is cancelled because the server ends is told so."""
    ended = isinstance(error, asyncio.CancelledError) and life.draining
    return ending() if ended else error


async def _gone(receive: Receive) -> None:
    """Until the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _part(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}
