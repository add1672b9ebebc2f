"""Values in a model's output: where one ends, and the calls that a JSON one spells."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

DEEPEST = 64
"""What is nested deeper is no call."""


class Call(NamedTuple):
    """A function's name and its arguments as JSON text."""

    name: str
    arguments: str


class NotAValueError(Exception):
    """The text is not what it began as; no more of it will help."""


class ValueEnd:
    """Finds the bracket that ends the value at ``start``, in text that grows; reads all of it once.

    ``quotes``: the characters that begin and end strings, in which brackets do not count.
    """

    def __init__(self, start: int, quotes: str = '"') -> None:
        self._at = start
        self._quote: re.Pattern[str] | None = None
        self._closing: list[str] = []
        self._marks = re.compile(rf"[{quotes}(){{}}\[\]]")

    def find(self, text: str) -> int | None:
        """Where the value ends; None: not yet. NotAValueError: its brackets do not match."""
        while True:
            found = (self._quote or self._marks).search(text, self._at)
            if found is None:
                self._at = len(text)
                return None
            self._at = found.end()
            mark = found[0]
            if self._quote is not None:
                if mark != "\\":
                    self._quote = None
                elif self._at < len(text):
                    self._at += 1
                else:  # what is escaped has not come yet
                    self._at -= 1
                    return None
            elif mark in "({[":
                self._closing.append(")}]"["({[".index(mark)])
                if len(self._closing) > DEEPEST:
                    raise NotAValueError
            elif mark in ")}]":
                if not self._closing or self._closing.pop() != mark:
                    raise NotAValueError
                if not self._closing:
                    return self._at
            else:
                self._quote = re.compile(rf"[{mark}\\]")


def calls_in(value: str, *, arguments_required: bool = False) -> tuple[Call, ...]:
    """The calls that a JSON object, or a list of such, spells; none if any of it is no call."""
    try:
        data = json.loads(value, parse_constant=_no_constant)
        each = data if isinstance(data, list) else [data]
        return tuple(_call(item, arguments_required) for item in each)
    except (ValueError, RecursionError):
        return ()


def dumped(value: Any) -> str:
    """JSON text that UTF-8 can hold: lone surrogates stay escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if _is_text(text) else json.dumps(value, allow_nan=False)


def is_name(name: Any) -> bool:
    """Whether this can be a function's name."""
    return isinstance(name, str) and bool(name.strip()) and _is_text(name)


def _call(item: Any, arguments_required: bool) -> Call:
    if isinstance(item, dict) and isinstance(item.get("function"), dict):
        item = item["function"]
    if not isinstance(item, dict) or not is_name(item.get("name")):
        raise ValueError("no function is named")
    key = next((key for key in ("arguments", "parameters") if key in item), None)
    if key is None and arguments_required:
        raise ValueError("no arguments")
    arguments = item.get(key) if key else None
    if isinstance(arguments, str):  # JSON inside JSON
        arguments = json.loads(arguments or "{}", parse_constant=_no_constant)
    if not isinstance(arguments, dict | None):
        raise ValueError("arguments are no object")
    return Call(item["name"], dumped(arguments or {}))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
