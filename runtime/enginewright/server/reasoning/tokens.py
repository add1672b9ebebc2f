"""How many of an output's tokens are its thoughts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from enginewright.server.reasoning.parser import ReasoningParser


class ThoughtTokens:
    """Counts along with the parser of the output; the marks are among the thoughts.

    ``decode``: the text of tokens, as the parser gets it. Where the thoughts end is found in the
    text, so it is looked for once: it may lie anywhere in what came together.
    """

    def __init__(self, parser: ReasoningParser, decode: Callable[[Sequence[int]], str]) -> None:
        self._parser, self._decode = parser, decode
        self._ids: list[int] = []
        self._ended = False
        self.count = 0

    def take(self, token_ids: Sequence[int]) -> None:
        """After the parser was fed what these tokens gave."""
        if self._ended:
            return
        self._ids += token_ids
        if self._parser.stage == "open":
            self.count = len(self._ids)
        elif self._parser.stage == "closed":
            self._ended = True
            self.count = bisect_left(range(len(self._ids)), True, key=self._closed_before)

    def _closed_before(self, count: int) -> bool:
        """Whether the thoughts end within the first ``count`` tokens."""
        parser = self._parser.again()
        parser.feed(self._decode(self._ids[:count]))
        return parser.stage == "closed"
