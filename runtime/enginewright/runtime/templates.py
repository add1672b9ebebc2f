"""Where a chat template comes from: the call, the LLM's option, or the artifact."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginewright.runtime.artifact import Artifact
from enginewright.runtime.errors import ArtifactError, ChatTemplateError

if TYPE_CHECKING:
    from enginewright.runtime.chat import ChatTemplate

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"


class Templates:
    """The templates of one LLM, each compiled on first use."""

    def __init__(self, artifact: Artifact, override: str | os.PathLike[str] | None = None) -> None:
        self._config = _read_config(artifact)
        self._source: str | None = None
        if override is not None:
            self._source = load_chat_template(override)
        elif artifact.holds(TEMPLATE_FILE):
            self._source = artifact.file(TEMPLATE_FILE).read_text("utf-8")
        self._compiled: dict[str, ChatTemplate] = {}

    def get(self, override: str | os.PathLike[str] | None = None) -> ChatTemplate:
        """The template of a call: its own, else the default.

        Raises ChatTemplateError where there is none.
        """
        from enginewright.runtime.chat import ChatTemplate  # jinja2 is only for chat

        source = self._source if override is None else load_chat_template(override)
        if source is None:
            raise ChatTemplateError(
                "the model has no chat template, so it is probably not tuned to chat; use "
                "generate(), or give chat_template= a path or a template"
            )
        if source not in self._compiled:
            bos, eos = (_token(self._config, name) for name in ("bos_token", "eos_token"))
            self._compiled[source] = ChatTemplate(source, bos, eos)
        return self._compiled[source]


def load_chat_template(template: str | os.PathLike[str]) -> str:
    """The text of a template given as a path or, with braces or a newline in it, as itself."""
    text = os.fspath(template)
    if isinstance(template, str) and any(character in text for character in "{}\n"):
        return text
    try:
        return Path(text).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ChatTemplateError(
            f"chat_template={text!r} looks like a file path, but it cannot be read ({error}); "
            f"give the path of a template, or the template itself"
        ) from error


def _read_config(artifact: Artifact) -> dict[str, Any]:
    """tokenizer_config.json, which holds the special tokens' text; empty where there is none."""
    if not artifact.holds(CONFIG_FILE):
        return {}
    path = artifact.file(CONFIG_FILE)
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON ({error}); build the artifact again") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{path}: not a JSON object; build the artifact again")
    return config


def _token(config: dict[str, Any], name: str) -> str | None:
    """A special token, which is a string or an object with its ``content``."""
    token = config.get(name)
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
