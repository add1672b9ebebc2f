"""Words that must not be generated, as sequences of token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from enginewright.runtime.errors import SamplingParamsError

Words = tuple[tuple[int, ...], ...]


class Encoder(Protocol):
    """What of a tokenizer is needed."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text."""


def tokenize_words(words: Iterable[str], tokenizer: Encoder) -> Words:
    """The ids of every word at the start of a text and after a space, each sequence once."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip()
        ids = tuple(tokenizer.encode(bare, add_special_tokens=False)) if bare else ()
        if not ids:
            raise SamplingParamsError(
                f"bad_words={word!r} is not legal: it must be text that has at least one token"
            )
        found[ids] = None
        found[tuple(tokenizer.encode(f" {bare}", add_special_tokens=False))] = None
    return tuple(ids for ids in found if ids)


def completing(words: Words, token_ids: Sequence[int]) -> list[int]:
    """The tokens that would complete one of the words after ``token_ids``."""
    return [word[-1] for word in words if _ends_with(token_ids, word[:-1])]


def _ends_with(token_ids: Sequence[int], prefix: tuple[int, ...]) -> bool:
    size = len(prefix)
    return size <= len(token_ids) and tuple(token_ids[len(token_ids) - size :]) == prefix
