"""What form an output must have: vLLM's StructuredOutputsParams, validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json import dumps, loads
from typing import Any

from enginewright.runtime.errors import SamplingParamsError
from enginewright.runtime.sampling.checks import flag, illegal, texts

CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


@dataclass(frozen=True)
class StructuredOutputsParams:
    """Exactly one of the first six says what the output must be."""

    json: str | Mapping[str, Any] | None = None
    """A JSON schema, as text or as a dict."""
    regex: str | None = None
    """Which the whole output matches; without look-around and references back."""
    choice: Sequence[str] | None = None
    """The texts of which the output is one; a tuple once constructed."""
    grammar: str | None = None
    """In Lark's notation or in GBNF, which is known by its ``::=``."""
    json_object: bool | None = None
    """Any JSON object."""
    structural_tag: str | None = None
    """As JSON text: free text in which a trigger must be followed by one of the structures."""
    disable_any_whitespace: bool = False
    """JSON without spaces and line breaks between its parts."""
    disable_additional_properties: bool = False
    """Objects of a JSON schema have only the properties that it names."""
    whitespace_pattern: str | None = None
    """A regular expression for what may stand once wherever JSON allows space."""

    def __post_init__(self) -> None:
        given = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(given) != 1:
            raise SamplingParamsError(
                f"structured outputs with {', '.join(given) or 'no constraint'}: exactly one of "
                f"{', '.join(CONSTRAINTS)} must be given"
            )
        flag("disable_any_whitespace", self.disable_any_whitespace)
        flag("disable_additional_properties", self.disable_additional_properties)
        if self.json_object is not None and self.json_object is not True:
            raise illegal("json_object", self.json_object, "True, or None")
        for name in ("regex", "whitespace_pattern"):
            self._check_text(name, may_be_blank=True)
        for name in ("grammar", "structural_tag"):
            self._check_text(name, may_be_blank=False)
        self._check_choice()
        self._check_json()
        if self.disable_any_whitespace and self.whitespace_pattern is not None:
            legal = "None when disable_any_whitespace is set"
            raise illegal("whitespace_pattern", self.whitespace_pattern, legal)

    @property
    def constraint(self) -> str:
        """Which of the six is given."""
        return next(name for name in CONSTRAINTS if getattr(self, name) is not None)

    @property
    def value(self) -> Any:
        """What is given for it."""
        return getattr(self, self.constraint)

    def _check_text(self, name: str, may_be_blank: bool) -> None:
        value = getattr(self, name)
        if value is None:
            return
        legal = f"text that is not {'empty' if may_be_blank else 'blank'} and holds no NUL"
        if not isinstance(value, str) or not value or "\0" in value:
            raise illegal(name, value, legal)
        if not may_be_blank and not value.strip():
            raise illegal(name, value, legal)
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise illegal(name, value, f"text that can be written as UTF-8 ({error})") from error

    def _check_choice(self) -> None:
        if self.choice is None:
            return
        choices = texts("choice", self.choice)
        if not choices:
            raise illegal("choice", self.choice, "a list of at least one text")
        object.__setattr__(self, "choice", choices)

    def _check_json(self) -> None:
        legal = "a JSON schema: a dict that is not empty, or its text"
        schema = self.json
        if schema is None:
            return
        if isinstance(schema, str):
            try:
                schema = loads(schema)
            except (ValueError, RecursionError) as error:
                raise illegal("json", self.json, f"{legal} ({error})") from error
        if not isinstance(schema, Mapping) or not schema:
            raise illegal("json", self.json, legal)
        try:
            dumps(schema)
        except (TypeError, ValueError, RecursionError) as error:
            raise illegal("json", self.json, f"{legal} ({error})") from error
