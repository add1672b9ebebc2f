"""The prompt linter: what is probably wrong with an artifact, its chat template, or a prompt.

Each ``lint_...`` is a pure function of the facts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.errors import ChatTemplateError
from enginewright.runtime.sampling.defaults import OVERRIDE, Defaults
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.text.templates import (
    CONFIG_FILE,
    GENERATION_FILE,
    read_config,
    special_tokens,
)
from enginewright.runtime.text.tokenizer import Tokenizer

Level = Literal["error", "warning", "note"]

MARKS = (
    "<|im_start|>",
    "<|start_header_id|>",
    "<|start_of_role|>",
    "<start_of_turn>",
    "<|user|>",
    "<｜User｜>",  # noqa: RUF001 - DeepSeek's are spelt so
    "[INST]",
    "### Instruction:",
    "USER: ",
)
"""What the well-known chat formats put before a message."""

_TUNED_NAME = re.compile(r"instruct|chat|assistant|[-_]it\b", re.IGNORECASE)
_TOKEN_LIKE = re.compile(r"<[|\uff5c][^\s<>'\"]{1,30}[|\uff5c]>|<(?:start|end)_of_turn>")
_QUESTION, _ANSWER = "What is it?", "It is this."


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (error), probably wrong (warning), or good to know (note)."""

    level: Level
    code: str
    message: str
    advice: str


@dataclass(frozen=True)
class Facts:
    """What is known of a loaded artifact. ``template``: the chat template that is in use."""

    manifest: Manifest
    tokenizer: Tokenizer
    special_tokens: Mapping[str, str]
    generation_config: Mapping[str, Any]
    template: str | None

    @staticmethod
    def of(artifact: Artifact, tokenizer: Tokenizer, template: str | None) -> Facts:
        """Read the rest from the artifact's small files."""
        return Facts(
            artifact.manifest,
            tokenizer,
            special_tokens(read_config(artifact, CONFIG_FILE)),
            read_config(artifact, GENERATION_FILE),
            template,
        )

    @cached_property
    def bos_token_id(self) -> int | None:
        """The id that a text begins with, if the model has one."""
        token = self.special_tokens.get("bos_token")
        found = None if token is None else self.tokenizer.token_to_id(token)
        return self.manifest.bos_token_id if found is None else found

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """What the template writes before messages: known marks, and special tokens in it."""
        if self.template is None:
            return ()
        own = {self.tokenizer.surface(token) or "" for token in self.tokenizer.special_ids}
        own -= {"", *self.special_tokens.values()}  # a plain text may hold BOS and EOS too
        known = own.union(mark.strip() for mark in MARKS)
        return tuple(sorted(mark for mark in known if mark in self.template))

    def spell(self, ids: Iterable[int]) -> str:
        """Ids with the text of their tokens: ``2 '</s>'``."""
        return ", ".join(f"{token} {self.tokenizer.surface(token)!r}" for token in sorted(ids))


def lint_artifact(facts: Facts) -> tuple[Finding, ...]:
    """Special tokens that contradict each other, and a chat template that is not there."""
    return (*_eos(facts), *_pad(facts), *_no_template(facts))


def lint_defaults(defaults: Defaults) -> tuple[Finding, ...]:
    """Where what a call without parameters uses is the model's and not the neutral."""
    neutral = SamplingParams()
    changed = [
        f"{name}={getattr(defaults.params, name)} ({origin})"
        for name, origin in sorted(defaults.origins.items())
        if origin != OVERRIDE and getattr(defaults.params, name) != getattr(neutral, name)
    ]
    if not changed:
        return ()
    found = Finding(
        "warning",
        "model-defaults",
        f"without sampling_params the model's own defaults hold: {', '.join(changed)}",
        "give sampling_params, or generation_config='vllm' for the neutral defaults",
    )
    return (found,)


def lint_template(facts: Facts) -> tuple[Finding, ...]:
    """Render two small conversations: does it work, and do the model's tokens fit?"""
    if facts.template is None:
        return ()
    try:
        asked = _render(facts, [("user", _QUESTION)], add_generation_prompt=True)
        answered = _render(facts, [("user", _QUESTION), ("assistant", _ANSWER)])
    except ChatTemplateError as error:
        advice = "give another chat_template, or correct the model's and build it again"
        return (Finding("error", "template-fails", str(error), advice),)
    return (*_unknown_tokens(facts, asked + answered), *_turn_end(facts, answered))


def lint_prompt(
    facts: Facts, text: str | None, ids: Sequence[int] | None = None
) -> tuple[Finding, ...]:
    """A prompt for ``generate``: its text, or the ids of one that was encoded elsewhere.

    With both, ``ids`` are what the tokenizer made of the text.
    """
    if ids is None:
        ids = facts.tokenizer.encode(text or "")
    found = [*_double_bos(facts, text, ids), *_only_special(facts, ids)]
    if text is not None and not found:
        found += [*_foreign_marks(facts, text)] or [*_not_formatted(facts, text)]
    return tuple(found)


def lint_ending(facts: Facts, text: str) -> tuple[Finding, ...]:
    """A formatted prompt that ends after the user's message, without the answer's beginning."""
    if facts.template is None:
        return ()
    try:
        asked = _render(facts, [("user", _QUESTION)], add_generation_prompt=True)
        closed = _render(facts, [("user", _QUESTION)])
    except ChatTemplateError:  # lint_template tells
        return ()
    ending = closed.rpartition(_QUESTION)[2].strip()
    begun = asked[len(closed) :].strip()
    if not begun or not ending or not text.rstrip().endswith(ending):
        return ()
    found = Finding(
        "warning",
        "no-generation-prompt",
        f"the prompt ends with {ending!r}, before the answer begins",
        f"end it with {begun!r}, as add_generation_prompt=True does, or use chat()",
    )
    return (found,)


def _eos(facts: Facts) -> Iterator[Finding]:
    token = facts.special_tokens.get("eos_token")
    token_id = None if token is None else facts.tokenizer.token_to_id(token)
    if token is not None and token_id is None:
        yield Finding(
            "error",
            "eos-unknown",
            f"the tokenizer's end token {token!r} is not in its vocabulary",
            "correct eos_token in tokenizer_config.json and build the artifact again",
        )
    everywhere = set(facts.manifest.eos_token_ids)
    if not everywhere:
        yield Finding(
            "warning",
            "no-eos",
            "the model names no end token, so only max_tokens and stop strings end its output",
            "give stop or stop_token_ids",
        )
    stated = {"tokenizer": _ids(token_id)}
    stated["generation_config.json"] = _ids(facts.generation_config.get("eos_token_id"))
    stated["the model's config"] = everywhere.difference(*stated.values())
    if any(ids and ids != everywhere for ids in stated.values()):
        said = "; ".join(f"{where}: {facts.spell(ids)}" for where, ids in stated.items() if ids)
        yield Finding(
            "warning",
            "eos-disagree",
            f"the sources disagree on the end tokens ({said})",
            "each of them ends the output here; other tools may know one source only",
        )


def _pad(facts: Facts) -> Iterator[Finding]:
    pad, eos = (facts.special_tokens.get(name) for name in ("pad_token", "eos_token"))
    pad_ids = _ids(facts.generation_config.get("pad_token_id"))
    if (pad is not None and pad == eos) or pad_ids & set(facts.manifest.eos_token_ids):
        shown = repr(pad) if pad == eos else facts.spell(pad_ids)
        yield Finding(
            "note",
            "pad-is-eos",
            f"padding and end are one token ({shown})",
            "harmless here, where nothing is padded; elsewhere give an attention mask, and do not "
            "mask the end token out of a training's labels",
        )


def _no_template(facts: Facts) -> Iterator[Finding]:
    if facts.template is not None:
        return
    name = f"{facts.manifest.name} {facts.manifest.source.reference}"
    marks = [mark for mark in MARKS if facts.tokenizer.token_to_id(mark) is not None]
    if _TUNED_NAME.search(name) or marks:
        why = f"its vocabulary holds {marks[0]!r}" if marks else "its name says so"
        yield Finding(
            "warning",
            "no-chat-template",
            f"the model seems tuned to chat ({why}), but has no chat template",
            "give chat_template= the path of its template, or the name of a built-in one",
        )
    else:
        yield Finding(
            "note",
            "no-chat-template",
            "the model has no chat template, as is usual for a base model; chat() will refuse",
            "use generate(), or give chat_template=",
        )


def _unknown_tokens(facts: Facts, rendered: str) -> Iterator[Finding]:
    missing = [
        mark
        for mark in dict.fromkeys(_TOKEN_LIKE.findall(rendered))
        if facts.tokenizer.token_to_id(mark) is None
    ]
    if missing:
        yield Finding(
            "warning",
            "template-tokens-unknown",
            f"the chat template writes {', '.join(missing)}, which the vocabulary does not hold, "
            f"so that the model reads them as letters",
            "check that the template belongs to this model",
        )


def _turn_end(facts: Facts, answered: str) -> Iterator[Finding]:
    after = answered.rpartition(_ANSWER)[2].lstrip()
    first = facts.tokenizer.encode(after, add_special_tokens=False)[:1]
    ends = set(facts.manifest.eos_token_ids)
    if first and first[0] in facts.tokenizer.special_ids and first[0] not in ends:
        yield Finding(
            "warning",
            "turn-end-not-eos",
            f"the chat template closes an answer by {facts.spell(first)}, which is no end token "
            f"({facts.spell(ends) or 'none'}), so that answers may run on",
            f"give stop_token_ids={first}",
        )


def _double_bos(facts: Facts, text: str | None, ids: Sequence[int]) -> Iterator[Finding]:
    bos = facts.bos_token_id
    if bos is None or list(ids[:2]) != [bos, bos]:
        return
    if text is None:
        advice = "leave one out"
    else:
        advice = "leave it out of the text, or use chat(), which adds none"
    yield Finding(
        "error", "double-bos", f"the prompt begins with BOS twice ({facts.spell([bos])})", advice
    )


def _only_special(facts: Facts, ids: Sequence[int]) -> Iterator[Finding]:
    if ids and all(token in facts.tokenizer.special_ids for token in ids):
        yield Finding(
            "warning",
            "only-special-tokens",
            f"the prompt holds nothing but special tokens ({facts.spell(set(ids))})",
            "the output will be whatever the model begins texts with; give it some text",
        )


def _not_formatted(facts: Facts, text: str) -> Iterator[Finding]:
    if facts.marks and not any(mark in text for mark in facts.marks):
        yield Finding(
            "warning",
            "not-chat-formatted",
            f"the model has a chat template, but the prompt has none of its marks "
            f"({', '.join(facts.marks[:4])}), so it is continued as plain text",
            "use chat() for an answer",
        )


def _foreign_marks(facts: Facts, text: str) -> Iterator[Finding]:
    foreign = [
        mark
        for mark in MARKS
        if mark in text
        and mark.strip() not in (facts.template or "")
        and facts.tokenizer.token_to_id(mark) is None
    ]
    if foreign:
        yield Finding(
            "warning",
            "foreign-chat-marks",
            f"the prompt is written in a chat format that is not this model's: {foreign[0]!r} is "
            f"neither in its template nor in its vocabulary",
            "use chat(), or the format that the model was tuned to",
        )


def _render(
    facts: Facts, talk: Sequence[tuple[str, str]], add_generation_prompt: bool = False
) -> str:
    from enginewright.runtime.text.chat import ChatTemplate

    assert facts.template is not None
    template = ChatTemplate(facts.template, **facts.special_tokens)
    messages = [{"role": role, "content": content} for role, content in talk]
    return template.render(messages, add_generation_prompt)


def _ids(value: Any) -> set[int]:
    """Token ids of a config: none, one, or a list."""
    items = value if isinstance(value, (list, tuple)) else [value]
    return {item for item in items if isinstance(item, int) and not isinstance(item, bool)}
