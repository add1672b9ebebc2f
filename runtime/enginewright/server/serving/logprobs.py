"""Log probabilities in the shapes that clients know, for a part of an output or a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from enginewright.runtime import Logprob

Positions = Sequence["Mapping[int, Logprob] | None"]
Spell = Callable[[int, "Logprob | None"], str]
"""A token's text."""

LOWEST = -9999.0
"""JSON has no infinity."""


def spelling(as_ids: bool | None, decode: Callable[[int], str]) -> Spell:
    """How tokens are written: as text, or as ``token_id:5``."""
    if as_ids:
        return lambda token, found: f"token_id:{token}"
    return lambda token, found: (found and found.decoded_token) or decode(token)


def completion_logprobs(
    token_ids: Sequence[int], positions: Positions, count: int, offset: int, spell: Spell
) -> dict[str, Any]:
    """Of completions; ``offset``: characters before the first of these tokens."""
    tokens: list[str] = []
    values: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for token, found in zip(token_ids, positions, strict=True):
        offsets.append(offset)
        tokens.append(spell(token, found[token] if found else None))
        offset += len(tokens[-1])
        values.append(finite(found[token].logprob) if found else None)
        tops.append(_top(token, found, count, spell) if found else None)
    return {
        "text_offset": offsets,
        "token_logprobs": values,
        "tokens": tokens,
        "top_logprobs": tops,
    }


def _top(token: int, found: Mapping[int, Logprob], count: int, spell: Spell) -> dict[str, float]:
    """The token's own and the ``count`` likeliest ones."""
    kept = dict([(token, found[token]), *likeliest(found, count)])
    return {spell(each, entry): finite(entry.logprob) for each, entry in kept.items()}


def chat_logprobs(
    token_ids: Sequence[int], positions: Positions, count: int, spell: Spell
) -> list[dict[str, Any]]:
    """Of chat: one object a token, with the ``count`` likeliest ones in order."""
    found = []
    for token, entries in zip(token_ids, positions, strict=True):
        assert entries is not None
        top = [_entry(spell(each, entry), entry) for each, entry in likeliest(entries, count)]
        own = _entry(spell(token, entries[token]), entries[token])
        found.append({**own, "top_logprobs": top})
    return found


def prompt_logprobs(positions: Positions | None) -> list[dict[str, Any] | None] | None:
    """Of a prompt, as vLLM has them: by token id."""
    if positions is None:
        return None
    return [
        {
            str(token): {
                "logprob": finite(entry.logprob),
                "rank": entry.rank,
                "decoded_token": entry.decoded_token,
            }
            for token, entry in found.items()
        }
        if found
        else None
        for found in positions
    ]


def likeliest(found: Mapping[int, Logprob], count: int) -> list[tuple[int, Logprob]]:
    """The first ``count`` entries by probability; -1: all."""
    ordered = sorted(found.items(), key=lambda item: -item[1].logprob)
    return ordered if count == -1 else ordered[:count]


def finite(value: float) -> float:
    """No lower than JSON can say."""
    return max(value, LOWEST)


def _entry(text: str, entry: Logprob) -> dict[str, Any]:
    raw = list(text.encode("utf-8", "replace"))
    return {"token": text, "logprob": finite(entry.logprob), "bytes": raw}
