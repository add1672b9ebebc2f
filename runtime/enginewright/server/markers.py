"""Markers in text that arrives in pieces: where one is, and what may still become one."""

from __future__ import annotations

import re
from collections.abc import Iterable


class Markers:
    """A set of texts to look for, none of which begins another."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(texts)
        for text in self.texts:
            assert text, "an empty marker"
            assert not any(text.startswith(other) for other in self.texts if other != text)
        self._pattern = re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")
        beginnings = {text[:length] for text in self.texts for length in range(1, len(text))}
        self._beginnings = tuple(sorted(beginnings, key=len, reverse=True))

    def search(self, text: str, start: int = 0) -> re.Match[str] | None:
        """The first marker of the text."""
        return self._pattern.search(text, start)

    def unsettled(self, text: str) -> int:
        """How many characters at the end of a text without a marker are to be held back.

        They may still become a marker, or are white space that may turn out to lie before one.
        """
        rest = text
        if text.endswith(self._beginnings):
            rest = text[: -next(len(each) for each in self._beginnings if text.endswith(each))]
        return len(text) - len(rest.rstrip())
