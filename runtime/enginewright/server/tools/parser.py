"""What a parser of tool calls gives, whatever the format.

A parser is made for one output and fed its text as it comes. The full answer is the same parser,
fed once and finished; `collect` puts the deltas of either together. Names and formats:
`tools/formats.py`.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class ToolCallDelta:
    """A part of the call ``index``; its first part alone has ``id`` and ``name``.

    ``arguments`` is what is to be appended to the call's JSON text.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True)
class Delta:
    """What became certain: text for the reader, and parts of calls. Both may be empty."""

    content: str = ""
    calls: tuple[ToolCallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.calls)


@dataclass(frozen=True)
class ToolCall:
    """A whole call; ``arguments`` is JSON text."""

    id: str
    name: str
    arguments: str


class ToolParser(ABC):
    """Splits one output into content and tool calls.

    The same text gives the same result however it is cut. What may still become a call is held
    back; what turns out not to be one comes out as content, as it was written. White space beside
    a call belongs to its format and is dropped.
    """

    @abstractmethod
    def feed(self, text: str) -> Delta:
        """Take in the next piece of the output."""

    @abstractmethod
    def finish(self) -> Delta:
        """What was held back, now that nothing more comes."""


def collect(deltas: Iterable[Delta]) -> tuple[str, list[ToolCall]]:
    """The content and the calls of all deltas of one output."""
    content: list[str] = []
    calls: list[ToolCall] = []
    for delta in deltas:
        content.append(delta.content)
        for part in delta.calls:
            if part.index == len(calls):
                calls.append(ToolCall(part.id or "", part.name or "", part.arguments))
            else:
                old = calls[part.index]
                calls[part.index] = ToolCall(old.id, old.name, old.arguments + part.arguments)
    return "".join(content), calls


def new_call_id() -> str:
    """An id as OpenAI spells them, never given twice."""
    return f"call_{uuid.uuid4().hex[:24]}"
