"""Structural tags: free text in which what follows a trigger must have a form. As a grammar."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

from enginewright.runtime.errors import SamplingParamsError

SpecialId = Callable[[str], "int | None"]
"""The id of a special token by its spelling; None for other text."""

_LEGAL = (
    'the text of {"structures": [{"begin": text, "schema": JSON schema, "end": text}, ...], '
    '"triggers": [text, ...]} where each begin starts with a trigger'
)


def parse_tags(text: str) -> tuple[list[str], list[Mapping[str, Any]]]:
    """The triggers and the structures of vLLM's form; SamplingParamsError for any other."""
    try:
        tag = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _illegal(text, f"not JSON: {error}") from error
    if not isinstance(tag, dict) or "structures" not in tag:
        raise _illegal(text, "XGrammar's tags with a format are not supported")
    triggers, structures = tag.get("triggers"), tag["structures"]
    if not _are_texts(triggers):
        raise _illegal(text, "triggers must be a list of texts")
    if not isinstance(structures, list) or not structures:
        raise _illegal(text, "structures must be a list that is not empty")
    for each in structures:
        if not isinstance(each, dict) or not _are_texts([each.get("begin")]):
            raise _illegal(text, "a structure has no begin")
        if not isinstance(each.get("end"), str):
            raise _illegal(text, "a structure has no end; it may be empty")
        if not isinstance(each.get("schema"), (dict, bool)):
            raise _illegal(text, "a structure has no schema")
        if _trigger(each, triggers) is None:
            raise _illegal(text, f"no trigger begins {each['begin']!r:.80}")
    return triggers, structures


def tags_to_lark(
    triggers: Sequence[str],
    structures: Sequence[Mapping[str, Any]],
    special_id: SpecialId,
) -> str:
    """Any text; once a trigger was written, one of its structures follows."""
    tags = [f"tag_{number}" for number in range(len(structures))]
    rules = [f"start: ({' | '.join(tags)})* TEXT", "TEXT: /(.|\\n)*/"]
    for name, structure in zip(tags, structures, strict=True):
        trigger = _trigger(structure, triggers)
        assert trigger is not None
        special = special_id(trigger)
        if special is None:
            rules.append(f"{name}_head[lazy]: TEXT {_quoted(trigger)}")
            head = f"{name}_head"
        else:
            head = f"TEXT <[{special}]>"
        rest = _quoted(structure["begin"][len(trigger) :])
        form = f"%json {json.dumps(structure['schema'])}"
        rules.append(f"{name}: {head} {rest} {form} {_quoted(structure['end'])}")
    return "\n".join(rules) + "\n"


def _trigger(structure: Mapping[str, Any], triggers: Sequence[str]) -> str | None:
    return next((each for each in triggers if structure["begin"].startswith(each)), None)


def _quoted(text: str) -> str:
    return json.dumps(text) if text else ""


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(each, str) and each for each in value)


def _illegal(text: str, why: str) -> SamplingParamsError:
    return SamplingParamsError(
        f"structured_outputs.structural_tag={text!r:.200} is not legal ({why}): it must be {_LEGAL}"
    )
