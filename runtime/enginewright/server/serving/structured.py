"""What form an answer must have: response_format, structured_outputs, or a demanded call."""

from __future__ import annotations

import json
from typing import Any

from enginewright.runtime import StructuredOutputsParams
from enginewright.runtime.errors import RequestError, SamplingParamsError
from enginewright.server.errors import FieldError
from enginewright.server.protocol.chat import ChatRequest, NamedTool
from enginewright.server.protocol.common import GenerationRequest, ResponseFormat
from enginewright.server.tools.forced import named_schema, required_schema

_FIELD = "structured_outputs"
_ONE_SPACE = " ?"
_IGNORED = ("disable_fallback", "backend", "_backend")


def structured_outputs(request: GenerationRequest) -> StructuredOutputsParams | None:
    """The one form that the request asks for; FieldError where it asks for several."""
    forms = {
        "response_format": _of_format(request.response_format),
        _FIELD: _of_params(request.structured_outputs),
        "tool_choice": _of_tools(request) if isinstance(request, ChatRequest) else None,
    }
    given = {name: form for name, form in forms.items() if form is not None}
    if len(given) > 1:
        raise FieldError(
            next(iter(given)), f"{' and '.join(given)} both say what form the answer has: give one"
        )
    return next(iter(given.values()), None)


def _of_format(given: ResponseFormat | None) -> StructuredOutputsParams | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return StructuredOutputsParams(json_object=True)
    name = "response_format"
    if given.type == "structural_tag":
        tag = {**(given.model_extra or {}), "type": "structural_tag"}
        return _made(name, structural_tag=json.dumps(tag))
    if given.json_schema is None or given.json_schema.schema_ is None:
        raise FieldError(name, f"{name} of type json_schema needs json_schema.schema")
    return _made(name, json=given.json_schema.schema_)


def _of_params(given: dict[str, Any] | None) -> StructuredOutputsParams | None:
    if given is None:
        return None
    known = StructuredOutputsParams.__dataclass_fields__
    fields = {name: value for name, value in given.items() if name not in _IGNORED}
    for name in fields.keys() - known.keys():
        legal = ", ".join(known)
        raise FieldError(_FIELD, f"{_FIELD} has no {name!r:.80}; there are {legal}")
    if fields.get("json_object") is False:
        del fields["json_object"]
    return _made(_FIELD, **fields)


def _made(name: str, **fields: Any) -> StructuredOutputsParams:
    try:
        return StructuredOutputsParams(**fields)
    except SamplingParamsError as error:
        raise FieldError(name, f"{name}: {error}") from error


def _of_tools(request: ChatRequest) -> StructuredOutputsParams | None:
    tools = request.tools_as_data()
    try:
        if isinstance(request.tool_choice, NamedTool):
            schema = named_schema(tools, request.tool_choice.function.name)
        elif request.tool_choice == "required":
            schema = required_schema(tools, parallel=request.parallel_tool_calls is not False)
        else:
            return None
    except RequestError as error:
        raise FieldError("tool_choice", str(error)) from error
    # Small models like to write spaces without end where they may.
    return _made("tools", json=schema, whitespace_pattern=_ONE_SPACE)
