"""Log probabilities of a request in few long lists: what ``flat_logprobs`` asks for."""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence
from dataclasses import dataclass, field
from typing import NoReturn, Self, overload

from enginewright.runtime.requests.outputs import Logprob


@dataclass
class FlatLogprobs(MutableSequence["dict[int, Logprob]"]):
    """A sequence of dicts, one for each position, that makes a dict when it is asked for one.

    Position i is the part of the last four lists from ``start_indices[i]`` up to
    ``end_indices[i]``. A position without any (the prompt's first) reads as an empty dict. It
    grows at its end; what is in it does not change.
    """

    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int | None] = field(default_factory=list)
    decoded_tokens: list[str | None] = field(default_factory=list)

    def append(self, value: dict[int, Logprob] | None) -> None:
        entries = (value or {}).values()
        self.append_fast(
            (value or {}).keys(),
            (entry.logprob for entry in entries),
            (entry.rank for entry in entries),
            (entry.decoded_token for entry in entries),
        )

    def append_fast(
        self,
        token_ids: Iterable[int],
        logprobs: Iterable[float],
        ranks: Iterable[int | None],
        decoded_tokens: Iterable[str | None],
    ) -> None:
        """The next position, without a dict; all four of one length."""
        self.start_indices.append(len(self.token_ids))
        self.token_ids.extend(token_ids)
        self.logprobs.extend(logprobs)
        self.ranks.extend(ranks)
        self.decoded_tokens.extend(decoded_tokens)
        self.end_indices.append(len(self.token_ids))

    def __len__(self) -> int:
        return len(self.start_indices)

    @overload
    def __getitem__(self, index: int) -> dict[int, Logprob]: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> dict[int, Logprob] | Self:
        if isinstance(index, slice):
            part = type(self)()
            for position in range(len(self))[index]:
                part.append(self[position])
            return part
        entries = range(self.start_indices[index], self.end_indices[index])
        return {
            self.token_ids[at]: Logprob(self.logprobs[at], self.ranks[at], self.decoded_tokens[at])
            for at in entries
        }

    def __setitem__(self, index: object, value: object) -> NoReturn:
        raise _unchangeable()

    def __delitem__(self, index: object) -> NoReturn:
        raise _unchangeable()

    def insert(self, index: object, value: object) -> NoReturn:
        raise _unchangeable()


def _unchangeable() -> TypeError:
    return TypeError("FlatLogprobs only grow at their end")
