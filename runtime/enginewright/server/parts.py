"""A chat answer as parts that open, grow and close: what other APIs stream.

A whole answer is one piece, so that it is read as a stream of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from enginewright.server.serving.pieces import Piece

Kind = Literal["reasoning", "text", "call"]


@dataclass(frozen=True)
class Opened:
    """A part begins; the one before it has closed. A call has its id and the function's name."""

    index: int
    kind: Kind
    call_id: str = ""
    name: str = ""


@dataclass(frozen=True)
class Grew:
    """More text of the open part; of a call, more of its arguments."""

    index: int
    kind: Kind
    text: str
    logprobs: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Closed:
    """A part is whole."""

    index: int
    kind: Kind
    text: str
    call_id: str = ""
    name: str = ""


Change = Opened | Grew | Closed


class Parts:
    """The parts of one output, from its pieces."""

    def __init__(self) -> None:
        self._open: Opened | None = None
        self._text: list[str] = []
        self._count = 0

    def feed(self, piece: Piece) -> Iterator[Change]:
        """What a piece changes."""
        if piece.reasoning:
            yield from self._grow("reasoning", piece.reasoning)
        if piece.content:
            yield from self._grow("text", piece.content, piece.logprobs or ())
        for call in piece.calls:
            if call.id is not None:
                yield from self.finish()
                yield self._opened("call", call.id, call.name or "")
            yield from self._grow("call", call.arguments)

    def finish(self) -> Iterator[Change]:
        """Close the part that is open."""
        if self._open is not None:
            done, self._open = self._open, None
            yield Closed(done.index, done.kind, "".join(self._text), done.call_id, done.name)

    def _grow(
        self, kind: Kind, text: str, logprobs: Sequence[Mapping[str, Any]] = ()
    ) -> Iterator[Change]:
        if self._open is None or self._open.kind != kind:
            yield from self.finish()
            yield self._opened(kind)
        assert self._open is not None
        if text:
            self._text.append(text)
            yield Grew(self._open.index, kind, text, logprobs)

    def _opened(self, kind: Kind, call_id: str = "", name: str = "") -> Opened:
        self._open, self._text = Opened(self._count, kind, call_id, name), []
        self._count += 1
        return self._open
