"""Streams of events that carry their kind in a line of its own: what other APIs' chats are told in.

A builder makes an API's events out of the pieces of a chat.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from enginewright.server.serving.call import Counts
from enginewright.server.serving.chat import ChatCall
from enginewright.server.serving.pieces import Piece, reasoning_tokens
from enginewright.server.serving.usage import usage_of
from enginewright.server.wire import to_bytes, to_json


class Builder(Protocol):
    """One answer as it grows; each call gives the events that it makes, by their ``type``."""

    def begin(self) -> Iterator[dict[str, Any]]:
        """Before the first piece."""

    def feed(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """Take in the next piece; a whole output is one, too."""

    def count(self, usage: Mapping[str, Any]) -> None:
        """Take in what the chat counted, before the end."""

    def finish(self) -> Iterator[dict[str, Any]]:
        """After the last piece."""


async def build_whole(chat: ChatCall, builder: Builder) -> None:
    """Run the chat to its end, and have it built; nobody hears the events."""
    output, pieces = await chat.finish()
    builder.count(usage_of([output], chat.call.usage.details, reasoning_tokens(pieces)))
    for piece in pieces:
        for _ in builder.feed(piece):
            pass
    for _ in builder.finish():
        pass


async def events_of(chat: ChatCall, builder: Builder) -> AsyncGenerator[bytes]:
    """The events of the chat, as it runs."""
    counts, begun = Counts(chat.call), False
    async with aclosing(chat.pieces()) as outputs:
        async for output, pieces in outputs:
            counts.take(0, output, pieces)
            made = [] if begun else [*builder.begin()]
            begun = True
            for piece in pieces:
                made += builder.feed(piece)
            if made:
                yield encoded(made)
    builder.count(counts.total())
    yield encoded(builder.finish())


def encoded(events: Iterable[dict[str, Any]]) -> bytes:
    """Events as they are sent."""
    return b"".join(
        to_bytes(f"event: {event['type']}\ndata: {to_json(event)}\n\n") for event in events
    )
