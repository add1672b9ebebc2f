"""What an output must be like, written as a grammar that llguidance compiles."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from enginewright.runtime.errors import SamplingParamsError
from enginewright.runtime.sampling import schema
from enginewright.runtime.sampling.structural_tag import SpecialId, parse_tags, tags_to_lark
from enginewright.runtime.sampling.structured import StructuredOutputsParams

# See schema.py: rules refer to each other as schemas do, and each stands on a line of its own.
MOST_CHARACTERS = 512 * 1024
MOST_LINES = 2000

# Else text without an alternative would have to come in the tokenizer's own tokens for it, among
# them special tokens where the text spells one.
_OPTIONS = '%llguidance {"no_forcing": true}'

_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)


def grammar_source(params: StructuredOutputsParams, special_id: SpecialId) -> str:
    """The grammar; SamplingParamsError names the field when it cannot be written safely."""
    if params.regex is not None:
        source = f"start: /{_between_slashes(params.regex)}/"
    elif params.choice is not None:
        source = "start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, params.choice))
    elif params.grammar is not None:
        source = _grammar(params, params.grammar)
    elif params.structural_tag is not None:
        source = _structural_tag(params, special_id)
    else:
        form = {"type": "object"} if params.json is None else params.json
        form = json.loads(form) if isinstance(form, str) else form
        source = f"start: %json {json.dumps(_schema(params, form))}"
    if len(source) > MOST_CHARACTERS:
        raise refused(
            params.constraint,
            params.value,
            f"it has {len(source)} characters, {MOST_CHARACTERS} is the limit",
        )
    return json.dumps({"grammars": [{"lark_grammar": f"{source}\n{_OPTIONS}\n"}]})


def refused(field: str, value: object, why: str) -> SamplingParamsError:
    """The error for a constraint that is well-formed Python, and still cannot be followed."""
    return SamplingParamsError(
        f"structured_outputs.{field}={value!r:.200} cannot be followed: {why}"
    )


def _schema(params: StructuredOutputsParams, form: Any) -> Any:
    """The schema, bounded, with what the request says about spaces and further properties."""
    _check(params, form)
    form = schema.without_foreign_formats(form)
    if params.disable_additional_properties:
        form = schema.without_additional_properties(form)
    options: dict[str, Any] = {}
    if params.disable_any_whitespace:
        options["whitespace_flexible"] = False
    if params.whitespace_pattern is not None:
        options["whitespace_pattern"] = params.whitespace_pattern
    if options and isinstance(form, Mapping):
        own = form.get("x-guidance", {})
        form = {**form, "x-guidance": {**own, **options} if isinstance(own, Mapping) else own}
    return form


def _check(params: StructuredOutputsParams, form: Any) -> None:
    why = schema.excess(form)
    if why is not None:
        raise refused(params.constraint, params.value, why)


def _between_slashes(pattern: str) -> str:
    """As Lark writes a regular expression; ``\\d`` is 0 to 9, as in JSON schemas."""
    from llguidance import regex_to_lark

    return regex_to_lark(pattern, use_ascii="d")


def _grammar(params: StructuredOutputsParams, text: str) -> str:
    """Lark as it is; GBNF, which has ``::=``, converted."""
    if len(text) > MOST_CHARACTERS:  # the converter takes its time
        raise refused("grammar", text, f"it has more than {MOST_CHARACTERS} characters")
    lark = _from_gbnf(text) if _GBNF_RULE.search(text) else text
    if lark.count("\n") >= MOST_LINES:
        raise refused("grammar", text, f"in Lark it has more than {MOST_LINES} lines")
    _check_inner_schemas(params, lark)
    return lark


def _from_gbnf(text: str) -> str:
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return any_to_lark(text)
    except Exception as error:  # the converter raises Exception itself
        raise refused("grammar", text, f"it is not GBNF ({error})") from error


def _check_inner_schemas(params: StructuredOutputsParams, text: str) -> None:
    """Schemas that stand in a grammar are bounded like others."""
    decoder = json.JSONDecoder()
    for found in re.finditer(r"%json\s*", text):
        try:
            form, _ = decoder.raw_decode(text, found.end())
        except ValueError:  # in a comment, or an error that the compiler tells better
            continue
        except RecursionError:
            raise refused("grammar", text, "a schema in it is nested too deep") from None
        _check(params, form)


def _structural_tag(params: StructuredOutputsParams, special_id: SpecialId) -> str:
    assert params.structural_tag is not None
    triggers, structures = parse_tags(params.structural_tag)
    formed = [{**each, "schema": _schema(params, each["schema"])} for each in structures]
    if len(formed) > MOST_LINES:
        raise refused("structural_tag", params.structural_tag, f"more than {MOST_LINES} structures")
    _check(params, [each["schema"] for each in structures])
    return tags_to_lark(triggers, formed, special_id)
