"""Sizes that a config states: what is none is refused before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginewright.runtime.errors import SourceError

_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)


def check_sizes(location: Path, config: Mapping[str, Any], spellings: Mapping[str, str]) -> None:
    """Raise SourceError for one that is stated and no whole number above 0.

    ``spellings`` are the family's own keys: GPT-2 says n_layer for num_hidden_layers.
    """
    for name in dict.fromkeys(key for size in _SIZES for key in (size, spellings.get(size, size))):
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise SourceError(
                f"{location}: config: {name} {value!r:.80} is not legal: it must be an integer of "
                f"at least 1"
            )
