"""Calls that the request demands: the JSON schema that holds the output to them, and its parser.

``tool_choice`` "required": the output is a list of ``{"name": ..., "parameters": {...}}``. A named
function: the output is its arguments alone. Both hold for every model, whatever its own format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from enginewright.runtime.errors import RequestError
from enginewright.server.tools.json_calls import JsonReader
from enginewright.server.tools.marked import MarkedParser, Reader
from enginewright.server.tools.parser import Delta, ToolCallDelta, ToolParser, new_call_id


def required_schema(tools: Sequence[Mapping[str, Any]], *, parallel: bool = True) -> dict[str, Any]:
    """What ``tool_choice`` "required" is held to; without ``parallel``, one call alone."""
    definitions: dict[str, Any] = {}
    forms = []
    for tool in tools:
        function = tool["function"]
        parameters = dict(function.get("parameters") or {"type": "object", "properties": {}})
        for key in ("$defs", "definitions"):
            for name, form in (parameters.pop(key, None) or {}).items():
                if definitions.setdefault(key, {}).setdefault(name, form) != form:
                    raise RequestError(
                        f"tools: {key}.{name} means different things in two of them, and "
                        f"tool_choice='required' needs them in one schema; rename one"
                    )
        forms.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "parameters": parameters},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    most = {} if parallel else {"maxItems": 1}
    return {"type": "array", "minItems": 1, **most, "items": {"anyOf": forms}, **definitions}


def named_schema(tools: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """What ``tool_choice`` of a named function is held to."""
    for tool in tools:
        if tool["function"]["name"] == name:
            return dict(tool["function"].get("parameters") or {"type": "object", "properties": {}})
    known = ", ".join(repr(tool["function"]["name"]) for tool in tools)
    raise RequestError(f"tool_choice names {name!r:.80}, which is not in tools: there are {known}")


class RequiredParser(MarkedParser):
    """The calls of an output that `required_schema` shaped; one that was cut is content."""

    markers: ClassVar[tuple[str, ...]] = ()
    bare: ClassVar[str] = "["

    def reader(self, text: str) -> Reader:
        return JsonReader("")


class NamedParser(ToolParser):
    """One call of the function ``name``, whose arguments are the output as it comes."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def feed(self, text: str) -> Delta:
        if not text:
            return Delta()
        name, self._name = self._name, None
        return Delta("", (ToolCallDelta(0, new_call_id() if name else None, name, text),))

    def finish(self) -> Delta:
        return Delta()
