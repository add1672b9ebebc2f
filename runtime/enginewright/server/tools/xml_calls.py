"""Calls as Qwen3-Coder writes them: a tag for the function, and one for each parameter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from enginewright.server.tools.json_values import Call, dumped, is_name
from enginewright.server.tools.marked import Attempt, MarkedParser, Reader

_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>(.*?)</parameter>", re.DOTALL)


class Qwen3Coder(MarkedParser):
    """``<tool_call><function=f><parameter=x>value</parameter></function></tool_call>``.

    Values are bare text; the tool's schema says which of them are JSON. The outer tags may be
    missing.
    """

    markers: ClassVar[tuple[str, ...]] = ("<tool_call>", "<function=")

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__()
        self._types = _types(tools)

    def reader(self, text: str) -> Reader:
        return _XmlReader(self._types)


class _XmlReader:
    def __init__(self, types: Mapping[str, Mapping[str, Any]]) -> None:
        self._types = types
        self._searched = 0

    def read(self, text: str, ended: bool) -> Attempt | None:
        begin = "<tool_call>" if text.startswith("<tool_call>") else ""
        end = "</tool_call>" if begin else "</function>"
        at = text.find(end, self._searched)
        if at < 0 and not ended:
            self._searched = max(0, len(text) - len(end))
            return None
        stop = at + len(end) if at >= 0 else len(text)
        inside = text[len(begin) : at if begin and at >= 0 else stop]
        calls = self._calls(inside)
        return Attempt(stop, calls) if calls else Attempt(len(begin) or len("<function="))

    def _calls(self, inside: str) -> tuple[Call, ...]:
        """What is in one tag; none unless all of it is calls."""
        calls, at = [], 0
        while function := _FUNCTION.match(inside, at):
            at = function.end()
            arguments = self._arguments(function[1], function[2])
            if arguments is None or not is_name(function[1]):
                return ()
            calls.append(Call(function[1], arguments))
        return tuple(calls) if at == len(inside) else ()

    def _arguments(self, name: str, body: str) -> str | None:
        arguments, at = {}, 0
        types = self._types.get(name, {})
        while parameter := _PARAMETER.match(body, at):
            at = parameter.end()
            text = parameter[2].removeprefix("\n").removesuffix("\n")
            arguments[parameter[1]] = _value(text, types.get(parameter[1]))
        return None if body[at:].strip() else dumped(arguments)


def _value(text: str, kind: Any) -> Any:
    """The parameter as its schema has it; text where the schema, or the text, says nothing else."""
    if kind is None or kind == "string":
        return text
    if kind == "boolean" and text.strip().lower() in ("true", "false"):
        return text.strip().lower() == "true"
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return text
    return value


def _types(tools: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By function and parameter: the type that the schema has; "" for one without a plain type."""
    found = {}
    for tool in tools:
        function = tool.get("function", tool)
        properties = (function.get("parameters") or {}).get("properties") or {}
        found[str(function.get("name"))] = {
            name: form.get("type", "") if isinstance(form, Mapping) else ""
            for name, form in properties.items()
        }
    return found
