"""What the formats share: find where a call may begin, have it read, give the rest as content."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

from enginewright.server.markers import Markers
from enginewright.server.tools.json_values import Call
from enginewright.server.tools.parser import Delta, ToolCallDelta, ToolParser, new_call_id


@dataclass(frozen=True)
class Attempt:
    """What was read: so many characters spell these calls, or are content if there are none."""

    length: int
    calls: tuple[Call, ...] = ()


class Reader(Protocol):
    """Reads what may be calls at one place of the output; made anew for each place."""

    def read(self, text: str, ended: bool) -> Attempt | None:
        """``text`` begins at the place, and is what it was the last time, with more behind it.

        None: it cannot be told yet; never so once the output has ended. What is told must hold
        whatever would come next.
        """


class MarkedParser(ToolParser):
    """Calls that begin with a marker, or, at the very start of the output, with ``bare``."""

    markers: ClassVar[tuple[str, ...]]
    bare: ClassVar[str] = ""

    def __init__(self) -> None:
        self._find = Markers(self.markers)
        self._held = ""
        self._reader: Reader | None = None
        self._blank = 0
        self._count = 0
        self._at_start, self._after_call = True, False
        self._content: list[str] = []
        self._parts: list[ToolCallDelta] = []

    @abstractmethod
    def reader(self, text: str) -> Reader:
        """What reads the call that may begin with ``text``."""

    def call_id(self) -> str:
        """An id for a call."""
        return new_call_id()

    def feed(self, text: str) -> Delta:
        self._held += text
        return self._drain(ended=False)

    def finish(self) -> Delta:
        return self._drain(ended=True)

    def _drain(self, ended: bool) -> Delta:
        while self._held and self._settle(ended):
            pass
        delta = Delta("".join(self._content), tuple(self._parts))
        self._content, self._parts = [], []
        return delta

    def _settle(self, ended: bool) -> bool:
        """Tell the next piece of what is held; False: more text must come first."""
        if self._after_call:
            self._held = self._held.lstrip()
        if self._reader is None:
            at = self._next_place()
            if at is None:
                self._say(len(self._held) - (0 if ended else self._find.unsettled(self._held)))
                return False
            self._blank = at - self._say(len(self._held[:at].rstrip()))
            self._reader = self.reader(self._held[self._blank :])
        attempt = self._reader.read(self._held[self._blank :], ended)
        if attempt is None:
            return False
        self._reader, self._at_start = None, False
        if attempt.calls:
            self._held = self._held[self._blank + attempt.length :]
            self._after_call = True
            self._parts += map(self._part, attempt.calls)
        else:
            self._say(self._blank + attempt.length)
        return True

    def _next_place(self) -> int | None:
        """Where a call may begin."""
        text = self._held.lstrip()
        if self._at_start and self.bare and text.startswith(self.bare):
            return len(self._held) - len(text)
        found = self._find.search(self._held)
        return found.start() if found else None

    def _say(self, count: int) -> int:
        """The first characters are content."""
        if count:
            self._content.append(self._held[:count])
            self._held = self._held[count:]
            self._at_start = self._after_call = False
        return count

    def _part(self, call: Call) -> ToolCallDelta:
        self._count += 1
        return ToolCallDelta(self._count - 1, self.call_id(), call.name, call.arguments)
