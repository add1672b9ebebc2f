"""Calls written as a Python list of calls, as some Llama models do."""

from __future__ import annotations

import ast
import warnings
from typing import ClassVar

from enginewright.server.tools.json_values import Call, NotAValueError, ValueEnd, dumped
from enginewright.server.tools.marked import Attempt, MarkedParser, Reader


class Pythonic(MarkedParser):
    """The output begins with ``[f(x=1), g(y="a")]``; Llama 4 puts it between two marks."""

    markers: ClassVar[tuple[str, ...]] = ("<|python_start|>",)
    bare: ClassVar[str] = "["

    def reader(self, text: str) -> Reader:
        return _ListReader("" if text.startswith("[") else "<|python_start|>")


class _ListReader:
    def __init__(self, begin: str) -> None:
        self._begin, self._end = begin, "<|python_end|>" if begin else ""
        self._list: ValueEnd | None = None
        self._stop: int | None = None

    def read(self, text: str, ended: bool) -> Attempt | None:
        refused = Attempt(max(1, len(self._begin)))
        inside = text[len(self._begin) :].lstrip()
        start = len(text) - len(inside)
        if not inside.startswith("["):
            return None if not inside and not ended else refused
        self._list = self._list or ValueEnd(start, quotes="\"'")
        try:
            self._stop = self._stop or self._list.find(text)
        except NotAValueError:
            return refused
        if self._stop is None:
            return refused if ended else None
        calls, stop = _calls(text[start : self._stop]), self._stop
        if not calls:
            return refused
        rest = text[stop:].lstrip()
        if rest.startswith(self._end):
            return Attempt(len(text) - len(rest) + len(self._end) if self._end else stop, calls)
        return None if self._end.startswith(rest) and not ended else Attempt(stop, calls)


def _calls(text: str) -> tuple[Call, ...]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            tree = ast.parse(text, mode="eval").body
        assert isinstance(tree, ast.List)
        return tuple(map(_call, tree.elts))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return ()


def _call(node: ast.expr) -> Call:
    """ValueError unless it is a call of a plain name with values by name."""
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call")
    arguments = {each.arg: ast.literal_eval(each.value) for each in node.keywords}
    if None in arguments:
        raise ValueError("arguments without a name")
    return Call(_name(node.func), dumped(arguments))


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    if isinstance(node, ast.Name):
        return node.id
    raise ValueError("no name")
