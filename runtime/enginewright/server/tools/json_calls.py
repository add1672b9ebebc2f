"""Calls as JSON: an object or a list of them, behind a mark."""

from __future__ import annotations

import re
import secrets
import string
from typing import ClassVar

from enginewright.server.tools.json_values import Call, NotAValueError, ValueEnd, calls_in
from enginewright.server.tools.marked import Attempt, MarkedParser, Reader

_SPACE = re.compile(r"\s*")
_NAMED = re.compile(r"\s*([\w.-]{1,128})(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*")
_NAMED_SO_FAR = re.compile(r"[\s\w.\[\]-]{,256}")


class JsonReader:
    """Values behind ``begin``, one of ``between`` between two, and ``end`` where it is written.

    ``strict``: only what has arguments is a call, for there is no mark that says so.
    """

    def __init__(self, begin: str, end: str = "", between: str = "", strict: bool = False) -> None:
        self._begin, self._end, self._between, self._strict = begin, end, between, strict
        self._read = len(begin)
        self._start = 0
        self._value: ValueEnd | None = None
        self._calls: list[Call] = []

    def read(self, text: str, ended: bool) -> Attempt | None:
        more: bool | None = True
        while more:
            more = self._begin_value(text) if self._value is None else self._read_value(text)
        if more is None and not ended:
            return None
        return Attempt(self._read if self._calls else max(1, len(self._begin)), tuple(self._calls))

    def _begin_value(self, text: str) -> bool | None:
        """Whether another value begins; None: it cannot be told yet."""
        at = _after_space(text, self._read)
        if self._calls:
            rest = text[at:]
            if self._end and rest.startswith(self._end):
                self._read = at + len(self._end)
                return False
            if self._end.startswith(rest) or not rest:
                return None if self._end or self._between else False
            if rest[0] not in self._between:
                return False
            at = _after_space(text, at + 1)
        if at == len(text):
            return None
        if text[at] not in "{[":
            return False
        self._value, self._start = ValueEnd(at), at
        return True

    def _read_value(self, text: str) -> bool | None:
        """Whether the value that was begun holds calls; None: it has not ended yet."""
        assert self._value is not None
        try:
            end = self._value.find(text)
        except NotAValueError:
            return False
        if end is None:
            return None
        calls = calls_in(text[self._start : end], arguments_required=self._strict)
        if calls:
            self._calls += calls
            self._read, self._value = end, None
        return bool(calls)


class NamedReader:
    """Mistral's later form: ``begin``, the function's name, then its arguments."""

    def __init__(self, begin: str) -> None:
        self._begin = begin
        self._value: ValueEnd | None = None

    def read(self, text: str, ended: bool) -> Attempt | None:
        refused = Attempt(len(self._begin))
        start = text.find("{")
        head = text[len(self._begin) : start if start >= 0 else None]
        if start < 0:
            possible = not ended and _NAMED_SO_FAR.fullmatch(head)
            return None if possible else refused
        named = _NAMED.fullmatch(head)
        if named is None:
            return refused
        self._value = self._value or ValueEnd(start)
        try:
            end = self._value.find(text)
        except NotAValueError:
            return refused
        if end is None:
            return refused if ended else None
        calls = calls_in(f'{{"name": "{named[1]}", "arguments": {text[start:end]}}}')
        return Attempt(end, calls) if calls else refused


class Hermes(MarkedParser):
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, also of Qwen2.5 and Qwen3."""

    markers: ClassVar[tuple[str, ...]] = ("<tool_call>",)

    def reader(self, text: str) -> Reader:
        return JsonReader("<tool_call>", "</tool_call>")


class Granite(MarkedParser):
    """``<|tool_call|>[{...}, ...]``; Granite 4 writes what Hermes does."""

    markers: ClassVar[tuple[str, ...]] = ("<|tool_call|>", "<tool_call>")

    def reader(self, text: str) -> Reader:
        if text.startswith("<tool_call>"):
            return JsonReader("<tool_call>", "</tool_call>")
        return JsonReader("<|tool_call|>")


class Phi4Mini(MarkedParser):
    """``functools[{...}, ...]``, or ``<|tool_call|>[{...}, ...]<|/tool_call|>``."""

    markers: ClassVar[tuple[str, ...]] = ("functools[", "<|tool_call|>")

    def reader(self, text: str) -> Reader:
        if text.startswith("functools"):
            return JsonReader("functools")
        return JsonReader("<|tool_call|>", "<|/tool_call|>")


class Llama3(MarkedParser):
    """The whole output is ``{"name": ..., "parameters": {...}}``, several joined by ``;``.

    ``<|python_tag|>`` may stand before them, then anywhere in the output.
    """

    markers: ClassVar[tuple[str, ...]] = ("<|python_tag|>",)
    bare: ClassVar[str] = "{"

    def reader(self, text: str) -> Reader:
        begin = "" if text.startswith("{") else "<|python_tag|>"
        return JsonReader(begin, between=";,", strict=True)


class Mistral(MarkedParser):
    """``[TOOL_CALLS][{...}, ...]``; later ``[TOOL_CALLS]name[ARGS]{...}``, once for each call."""

    markers: ClassVar[tuple[str, ...]] = ("[TOOL_CALLS]",)

    def reader(self, text: str) -> Reader:
        return _MistralReader()

    def call_id(self) -> str:
        """Nine letters and digits: Mistral's templates refuse any other."""
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


class _MistralReader:
    """Either of Mistral's forms, by what follows the mark."""

    def __init__(self) -> None:
        self._reader: Reader | None = None

    def read(self, text: str, ended: bool) -> Attempt | None:
        begin = "[TOOL_CALLS]"
        if self._reader is None:
            at = _after_space(text, len(begin))
            if at == len(text) and not ended:
                return None
            self._reader = JsonReader(begin) if text[at : at + 1] in "{[" else NamedReader(begin)
        return self._reader.read(text, ended)


def _after_space(text: str, start: int) -> int:
    space = _SPACE.match(text, start)
    assert space is not None
    return space.end()
