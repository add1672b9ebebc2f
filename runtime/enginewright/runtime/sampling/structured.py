"""What form an output must have: vLLM's StructuredOutputsParams, validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json import JSONDecodeError, dumps, loads
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
    choice: Sequence[str] | None = None
    """The texts of which the output is one; a tuple once constructed."""
    grammar: str | None = None
    json_object: bool | None = None
    """Any JSON object."""
    structural_tag: str | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(given) != 1:
            raise SamplingParamsError(
                f"structured outputs with {', '.join(given) or 'no constraint'}: exactly one of "
                f"{', '.join(CONSTRAINTS)} must be given"
            )
        flag("disable_any_whitespace", self.disable_any_whitespace)
        flag("disable_additional_properties", self.disable_additional_properties)
        if self.json_object is not None:
            flag("json_object", self.json_object)
        for name in ("regex", "grammar", "structural_tag", "whitespace_pattern"):
            self._check_text(name)
        self._check_choice()
        self._check_json()

    def _check_text(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise illegal(name, value, "text that is not blank and holds no NUL")

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
            except JSONDecodeError as error:
                raise illegal("json", self.json, f"{legal} ({error})") from error
        if not isinstance(schema, Mapping) or not schema:
            raise illegal("json", self.json, legal)
        try:
            dumps(schema)
        except (TypeError, ValueError) as error:
            raise illegal("json", self.json, f"{legal} ({error})") from error
