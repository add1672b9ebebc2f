"""What pydantic found wrong with a recipe or a lock, with the field's path, the value, the fix."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

_WANTED = {
    "string_type": "text",
    "invalid_key": "text",
    "path_type": "a path",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "tuple_type": "a list",
    "dataclass_type": "a mapping",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """All problems: one in a line, several as a list."""
    lines = [_line(problem, model) for problem in error.errors()]
    if len(lines) == 1:
        return lines[0]
    return "".join(f"\n  - {line}" for line in lines)


def _line(problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    location: tuple[int | str, ...] = tuple(part for part in problem["loc"] if part != "[key]")
    path = ".".join(str(part) for part in location) or "recipe"
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown key{_nearest(str(location[-1]), _fields(model, location[:-1]))}"
    if problem["type"] == "missing":
        return f"{path}: missing; it has no default"
    reason = _reason(problem, _fields(model, location))
    if not location and not isinstance(problem["input"], str):
        return reason  # about the recipe as a whole
    value = problem["input"]
    if isinstance(value, (Mapping, BaseModel)):
        return f"{path}: {reason}"
    return f"{path}: {value!r:.80} is not legal: {reason}"


def _reason(problem: Mapping[str, Any], keys: Sequence[str]) -> str:
    """What is wanted, in this project's words; our own validators say it themselves."""
    wanted = _WANTED.get(problem["type"])
    if problem["type"] == "model_type":
        wanted = f"a mapping with the keys {', '.join(keys)}"
    if wanted is None:
        return str(problem["msg"]).removeprefix("Value error, ")
    return f"it must be {wanted.format_map(problem.get('ctx', {}))}"


def _nearest(name: str, legal: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, legal, n=1, cutoff=0.5)
    listed = f"legal: {', '.join(legal)}"
    return f"; did you mean {close[0]}? ({listed})" if close else f"; {listed}"


def _fields(model: type[BaseModel], location: Sequence[int | str]) -> Sequence[str]:
    """The legal keys of the section at a location."""
    section: type[BaseModel] | None = model
    for part in location:
        if section is not None and part in section.model_fields:
            section = _section_of(section.model_fields[str(part)].annotation)
    return tuple(section.model_fields) if section is not None else ()


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation: itself, or the values of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [_section_of(argument) for argument in get_args(annotation)]
    return next((section for section in inner if section is not None), None)
