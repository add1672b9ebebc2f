"""Token ids that a model's files state: of the right type, and in the vocabulary."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

from enginewright.runtime.errors import SourceError


def read_ids(where: str, value: Any) -> tuple[int, ...]:
    """The ids of a field that holds one, a list of them, or None."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if not isinstance(token, numbers.Integral) or isinstance(token, bool):
            raise SourceError(
                f"{where}: {value!r:.80} is not legal: it must be a token's id, which is an "
                f"integer, or a list of ids"
            )
    return tuple(int(token) for token in ids)


def check_ids(where: str, ids: Sequence[int], vocab_size: int) -> None:
    """A token outside the vocabulary is never written: a text that it should end never ends."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise SourceError(
                f"{where}: {token} is outside the vocabulary of {vocab_size} tokens, so the model "
                f"could never end with it; correct it to an id from 0 to {vocab_size - 1}, or "
                f"remove it"
            )
