"""JSON schemas before they are compiled: bounds, and rewriting what a request asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

# llguidance recurses over a schema, through its references: a stack that overflows ends the
# process. Its automaton for multipleOf has as many states as the number, and those of several
# multiply. The time for the properties of an object grows with the square of their number.
DEEPEST = 120
MOST_PARTS = 5000
MOST_LEVELS = 5000
LARGEST_MULTIPLE = 100_000

_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SCHEMAS = (
    "additionalProperties",
    "allOf",
    "anyOf",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "oneOf",
    "prefixItems",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
)

# Draft 2020-12, Validation 7.3.
_FORMATS = frozenset(
    [
        "date-time",
        "date",
        "time",
        "duration",
        "email",
        "idn-email",
        "hostname",
        "idn-hostname",
        "ipv4",
        "ipv6",
        "uri",
        "uri-reference",
        "iri",
        "iri-reference",
        "uuid",
        "uri-template",
        "json-pointer",
        "relative-json-pointer",
        "regex",
    ]
)


def excess(schema: Any) -> str | None:
    """Why the schema is more than can be compiled safely; None if it is not."""
    depth, references, multiple = 0, set[str](), 1
    for count, (level, value) in enumerate(_containers(schema), 1):
        depth = max(depth, level)
        if count > MOST_PARTS:
            return f"it has more than {MOST_PARTS} objects and lists"
        if depth > DEEPEST:
            return f"it is nested more than {DEEPEST} levels deep"
        if isinstance(value, Mapping):
            references.update([str(value["$ref"])] if "$ref" in value else [])
            multiple = math.lcm(multiple, _digits(value.get("multipleOf")))
    if depth * (1 + len(references)) > MOST_LEVELS:
        return (
            f"it has {depth} levels and {len(references)} different $ref: their product may be "
            f"{MOST_LEVELS} at most"
        )
    if multiple > LARGEST_MULTIPLE:
        return (
            f"the least common multiple of its multipleOf, without zeros at the end, is above "
            f"{LARGEST_MULTIPLE}"
        )
    return None


def without_additional_properties(schema: Any) -> Any:
    """A copy whose objects that name properties have no others, unless they say so themselves."""

    def close(part: dict[str, Any]) -> None:
        if any(isinstance(part.get(name), Mapping) for name in ("properties", "patternProperties")):
            part.setdefault("additionalProperties", False)

    return _changed(schema, close)


def without_foreign_formats(schema: Any) -> Any:
    """A copy without formats that JSON Schema does not define: to it those are remarks.

    Pydantic writes some (``path``, ``binary``).
    """

    def forget(part: dict[str, Any]) -> None:
        if isinstance(part.get("format"), str) and part["format"] not in _FORMATS:
            del part["format"]

    return _changed(schema, forget)


def _changed(schema: Any, change: Callable[[dict[str, Any]], None]) -> Any:
    """A copy, of which every schema within was given to ``change``."""
    if isinstance(schema, list):
        return [_changed(each, change) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    result = dict(schema)
    for name in _SCHEMAS_BY_NAME:
        if isinstance(result.get(name), Mapping):
            result[name] = {key: _changed(each, change) for key, each in result[name].items()}
    for name in _SCHEMAS:
        if name in result:
            result[name] = _changed(result[name], change)
    change(result)
    return result


def _containers(value: Any) -> Iterator[tuple[int, Any]]:
    """Every dict and list in it, with its depth from 1; without recursion."""
    waiting = [(1, value)]
    while waiting:
        level, value = waiting.pop()
        if not isinstance(value, (Mapping, list)):
            continue
        yield level, value
        inside = value.values() if isinstance(value, Mapping) else value
        waiting += [(level + 1, each) for each in inside]


def _digits(number: Any) -> int:
    """A number's digits without point and zeros at the end; 1 for what is no positive number."""
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not number > 0:
        return 1
    digits = Decimal(str(number)).normalize().as_tuple().digits if math.isfinite(number) else (1,)
    return int("".join(map(str, digits)))
