"""Messages to a prompt, by the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from enginewright.runtime.errors import PromptError

DEEPEST_DATA = 64
_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A model's chat template; renders as transformers' ``apply_chat_template`` does.

    The source is untrusted: it runs in a sandbox and within a budget of work. Whatever goes
    wrong in it is a ChatTemplateError. May be shared by threads.
    """

    def __init__(
        self, source: str, bos_token: str | None = None, eos_token: str | None = None
    ) -> None:
        # Imported here: Jinja takes a while to import, and completion does not need it.
        from enginewright.runtime.sandbox.rendering import CompiledTemplate

        self._template = CompiledTemplate(source)
        tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._tokens = {name: token for name, token in tokens.items() if token is not None}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt for the messages; ``kwargs`` (tools, enable_thinking...) reach the template.

        Messages are dicts with a role and a content: a string, or a list of text parts, which
        are joined by newlines for a template that takes strings. PromptError when they are not.
        """
        values: dict[str, Any] = {"tools": None, "documents": None, **self._tokens}
        values.update(_plain(kwargs, "chat template arguments"))
        values["messages"] = self._checked(messages)
        values["add_generation_prompt"] = add_generation_prompt
        return self._template.render(values)

    def _checked(self, messages: object) -> list[dict[str, Any]]:
        if not isinstance(messages, (list, tuple)) or not messages:
            raise PromptError(
                f"messages must be a list of at least one dict with role and content, "
                f"not {messages!r:.80}"
            )
        return [self._message(index, message) for index, message in enumerate(messages)]

    def _message(self, index: int, message: object) -> dict[str, Any]:
        where = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise PromptError(f"{where} must be a dict with role and content, not {message!r:.80}")
        # Like transformers: APIs send None for what is not there; templates test for absence.
        plain = {name: value for name, value in _plain(message, where).items() if value is not None}
        role = plain.get("role")
        if not isinstance(role, str) or not role:
            raise PromptError(f"{where} has the role {role!r}: it must be text, such as 'user'")
        if "content" not in plain and "tool_calls" not in plain:
            raise PromptError(f"{where} has no content: it must be text, or a list of text parts")
        if "content" in plain:
            plain["content"] = self._content(plain["content"], f"{where}.content")
        return _with_reasoning(plain)

    def _content(self, content: object, where: str) -> str | list[Any]:
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise PromptError(f"{where} must be text or a list of text parts, not {content!r:.80}")
        texts = [_part_text(part, f"{where}[{index}]") for index, part in enumerate(content)]
        return content if self._template.wants_parts else "\n".join(texts)


def _part_text(part: object, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise PromptError(f'{where} must be {{"type": "text", "text": ...}}, not {part!r:.80}')
    if kind != "text":
        raise PromptError(
            f"{where} is of type {kind!r}: this engine takes parts of type 'text' only"
        )
    if not isinstance(part.get("text"), str):
        raise PromptError(f"{where}.text must be text, not {part.get('text')!r:.80}")
    return str(part["text"])


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message's reasoning under each name that templates read, as transformers gives it."""
    given = [message[name] for name in _REASONING_NAMES if name in message]
    if not given:
        return message
    return {"thinking": given[0], **message, "reasoning_content": given[0]}


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy of JSON-like data out of plain types: objects have methods that a sandbox misses."""
    if depth > DEEPEST_DATA:
        raise PromptError(f"{where} is nested more than {DEEPEST_DATA} deep")
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {
            _key(name, where): _plain(item, f"{where}.{name}", depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{at}]", depth + 1) for at, item in enumerate(value)]
    if value is None or type(value) in (bool, int, float):
        return value
    raise PromptError(
        f"{where} holds {value!r:.80}: text, numbers, true, false, None, lists and dicts are legal"
    )


def _key(name: object, where: str) -> str:
    if not isinstance(name, str):
        raise PromptError(f"{where} has the key {name!r}: keys must be text")
    return str.__str__(name)
