"""Where a chat template comes from: the call, the LLM's option, or the artifact."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from enginewright.runtime.artifact.artifact import Artifact
from enginewright.runtime.errors import ArtifactError, ChatTemplateError

if TYPE_CHECKING:
    from enginewright.runtime.text.chat import ChatTemplate

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
GENERATION_FILE = "generation_config.json"
SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_SUFFIX = ".jinja"

TemplateSource: TypeAlias = str | os.PathLike[str]
"""The path of a template, the template itself, or the name of a built-in one."""


class Templates:
    """The templates of one LLM, each compiled on first use.

    ``source``: the default's text. ``tokens``: the special tokens that templates name.
    """

    def __init__(self, artifact: Artifact, override: TemplateSource | None = None) -> None:
        self.tokens = special_tokens(read_config(artifact, CONFIG_FILE))
        self.source = artifact_template(artifact) if override is None else _load(override)
        self._compiled: dict[str, ChatTemplate] = {}

    def get(self, override: TemplateSource | ChatTemplate | None = None) -> ChatTemplate:
        """The template of a call: its own, compiled or not, else the default.

        Raises ChatTemplateError where there is none.
        """
        from enginewright.runtime.text.chat import ChatTemplate  # jinja2 is only for chat

        if isinstance(override, ChatTemplate):
            return override
        source = self.source if override is None else _load(override)
        if source is None:
            raise ChatTemplateError(
                "the model has no chat template, so it is probably not tuned to chat; use "
                f"generate(), or give chat_template= a path, a template, or the name of a "
                f"built-in one: {', '.join(named_templates())}"
            )
        if source not in self._compiled:
            self._compiled[source] = ChatTemplate(source, **self.tokens)
        return self._compiled[source]

    def once(self, source: str) -> ChatTemplate:
        """A template of that text, for one call: it is not kept, and no file is looked for."""
        from enginewright.runtime.text.chat import ChatTemplate

        return ChatTemplate(source, **self.tokens)


def load_chat_template(
    chat_template: str | os.PathLike[str] | None, *, is_literal: bool = False
) -> str | None:
    """The text of a template: looked up as vLLM does. None stays None.

    A file at that path; else, with a brace or a newline in it, the text itself; else a built-in
    name, such as "chatml". ``is_literal``: the text itself, whatever it looks like.
    Raises ChatTemplateError for what is none of these.
    """
    if chat_template is None:
        return None
    if not isinstance(chat_template, (str, os.PathLike)) or not os.fspath(chat_template):
        raise ChatTemplateError(
            f"chat_template={chat_template!r:.80} is not legal: it must be the path of a template, "
            f"or the template itself, or a built-in name; leave it out for the model's own"
        )
    if is_literal:
        if not isinstance(chat_template, str):
            raise ChatTemplateError(
                f"chat_template={chat_template!r:.80} is a path, but is_literal=True: give the "
                f"template's text, or leave is_literal out"
            )
        return chat_template
    try:
        return Path(chat_template).read_text("utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a null character
        return _not_a_file(chat_template, error)


def named_templates() -> tuple[str, ...]:
    """The names of the built-in templates."""
    names = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)))


def artifact_template(artifact: Artifact) -> str | None:
    """The template that came with the model."""
    if not artifact.holds(TEMPLATE_FILE):
        return None
    return artifact.file(TEMPLATE_FILE).read_text("utf-8")


def read_config(artifact: Artifact, name: str) -> dict[str, Any]:
    """A JSON object of the artifact; empty where there is no such file."""
    if not artifact.holds(name):
        return {}
    path = artifact.file(name)
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON ({error}); build the artifact again") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{path}: not a JSON object; build the artifact again")
    return config


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The text of each special token that a tokenizer_config.json names."""
    found = {name: _token(config.get(name)) for name in SPECIAL_TOKENS}
    return {name: token for name, token in found.items() if token is not None}


def _token(token: Any) -> str | None:
    """A special token is a string, or an object with its ``content``."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _load(chat_template: str | os.PathLike[str]) -> str:
    source = load_chat_template(chat_template)
    assert source is not None
    return source


def _not_a_file(chat_template: str | os.PathLike[str], error: Exception) -> str:
    """What a value means whose file cannot be read."""
    text = os.fspath(chat_template)
    if isinstance(chat_template, str):
        if any(character in text for character in "{}\n"):
            return text
        # vLLM names its own ones template_chatml.jinja
        name = text.removesuffix(_SUFFIX).removeprefix("template_")
        if name in named_templates():
            return (_folder() / f"{name}{_SUFFIX}").read_text("utf-8")
    raise ChatTemplateError(
        f"chat_template={text!r} looks like a file path, but it failed to be opened. Tried: {text} "
        f"({error}), and the built-in templates: {', '.join(named_templates())}. Give the path of "
        f"a template, the template itself, or one of these names"
    ) from error


def _folder() -> Traversable:
    return resources.files("enginewright.runtime") / "chat_templates"
