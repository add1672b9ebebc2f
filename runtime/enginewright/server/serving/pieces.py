"""What a chat's output is made of: thoughts, an answer, and calls, as they become certain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from enginewright.runtime import CompletionOutput, RequestOutput
from enginewright.server.reasoning.parser import ReasoningParser
from enginewright.server.reasoning.tokens import ThoughtTokens
from enginewright.server.tools.parser import Delta, ToolCallDelta, ToolParser

Logprobs = Callable[[CompletionOutput], "list[dict[str, Any]] | None"]


@dataclass
class Piece:
    """A part of one output. A whole output is a piece, too.

    ``token_ids`` and ``logprobs`` are of all tokens since the last piece, those that only marked
    something among them. ``finish_reason`` None: more comes. ``reasoning_tokens``: of the
    output so far; None where no thoughts are looked for.
    """

    index: int
    content: str = ""
    reasoning: str = ""
    calls: tuple[ToolCallDelta, ...] = ()
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[str, Any]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    reasoning_tokens: int | None = None

    @property
    def tells(self) -> bool:
        """Whether there is anything in it for the reader."""
        return bool(self.content or self.reasoning or self.calls or self.finish_reason)


class OutputReader:
    """Reads one output as it comes. ``index``: which of a request's.

    ``decode``: the text of tokens, as outputs have it; without it those of the reasoning are not
    counted. ``names_call``: the request demanded one function by name, whose finish_reason stays
    "stop".
    """

    def __init__(
        self,
        index: int,
        *,
        reasoning: ReasoningParser | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
        tools: ToolParser | None = None,
        show_reasoning: bool = True,
        parallel: bool = True,
        names_call: bool = False,
        logprobs: Logprobs = lambda made: None,
    ) -> None:
        self._index, self._reasoning, self._tools = index, reasoning, tools
        self._thoughts = None
        if reasoning is not None and decode is not None:
            self._thoughts = ThoughtTokens(reasoning, decode)
        self._show_reasoning, self._parallel = show_reasoning, parallel
        self._names_call, self._logprobs = names_call, logprobs
        self._called = False
        self._held = Piece(index)

    def read(self, made: CompletionOutput) -> Piece | None:
        """The next piece; None: nothing for the reader yet."""
        piece, self._held = self._held, Piece(self._index)
        piece.token_ids += made.token_ids
        found = self._logprobs(made)
        if found is not None:
            piece.logprobs = (piece.logprobs or []) + found
        ended = made.finish_reason is not None
        thoughts, answer = self._split(made.text, ended)
        if self._thoughts is not None:
            self._thoughts.take(made.token_ids)
            piece.reasoning_tokens = self._thoughts.count
        delta = self._parse(answer, ended)
        piece.reasoning = thoughts if self._show_reasoning else ""
        piece.content, piece.calls = delta.content, self._wanted(delta)
        self._called = self._called or bool(piece.calls)
        if ended:
            piece.stop_reason = made.stop_reason
            piece.finish_reason = self._reason(made)
        if piece.tells:
            return piece
        self._held = piece
        return None

    def _split(self, text: str, ended: bool) -> tuple[str, str]:
        if self._reasoning is None:
            return "", text
        splits = [self._reasoning.feed(text)]
        if ended:
            splits.append(self._reasoning.finish())
        thoughts = "".join(split.reasoning for split in splits)
        return thoughts, "".join(split.content for split in splits)

    def _parse(self, text: str, ended: bool) -> Delta:
        if self._tools is None:
            return Delta(text)
        fed = self._tools.feed(text)
        if not ended:
            return fed
        rest = self._tools.finish()
        return Delta(fed.content + rest.content, fed.calls + rest.calls)

    def _wanted(self, delta: Delta) -> tuple[ToolCallDelta, ...]:
        return delta.calls if self._parallel else tuple(c for c in delta.calls if c.index == 0)

    def _reason(self, made: CompletionOutput) -> str | None:
        if self._called and made.finish_reason == "stop" and not self._names_call:
            return "tool_calls"
        return made.finish_reason


def whole(output: RequestOutput, reader: Callable[[int], OutputReader]) -> list[Piece]:
    """Each output of a finished request as one piece."""
    pieces = [reader(each.index).read(each) for each in output.outputs]
    return [piece for piece in pieces if piece is not None]


def reasoning_tokens(pieces: Iterable[Piece]) -> int | None:
    """Of whole outputs; None where no thoughts were looked for."""
    found = [each.reasoning_tokens for each in pieces if each.reasoning_tokens is not None]
    return sum(found) if found else None
