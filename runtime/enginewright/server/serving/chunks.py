"""Events of a stream, put together from prepared text: only what is new is encoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginewright.server.wire import to_bytes, to_json


class Chunks:
    """Of one stream; ``head``: what every event begins with."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        self._head = f"data: {to_json(head)[:-1]},"
        self._starts: dict[int, str] = {}

    def choice(
        self, index: int, choice: Mapping[str, Any], tail: Mapping[str, Any] | None = None
    ) -> bytes:
        """An event with one choice; ``tail``: what stands beside the choices, such as usage."""
        return self.encoded(index, to_json(choice)[1:-1], tail)

    def encoded(self, index: int, choice: str, tail: Mapping[str, Any] | None = None) -> bytes:
        """The same of a choice whose fields are JSON already."""
        start = self._starts.get(index)
        if start is None:
            start = self._starts[index] = f'{self._head}"choices":[{{"index":{index},'
        told = f",{to_json(tail)[1:-1]}" if tail else ""
        return to_bytes(f"{start}{choice}}}]{told}}}\n\n")

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        """The event after the last choice."""
        return to_bytes(f'{self._head}"choices":[],"usage":{to_json(usage)}}}\n\n')
