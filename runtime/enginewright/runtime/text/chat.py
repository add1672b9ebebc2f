"""Messages to a prompt, by the model's own chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from enginewright.runtime.errors import ChatTemplateError, PromptError, RequestError
from enginewright.runtime.sampling.checks import illegal

ContentFormat = Literal["auto", "string", "openai"]

DEEPEST_DATA = 64
_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
_NOT_FOR_TEMPLATES = ("messages", "chat_template", "tokenize")
# Ends in a space, so that one sees whether a template trims what it is given.
_HERE = "<continue-from-here> "


class ChatTemplate:
    """A model's chat template; renders as transformers' ``apply_chat_template`` does.

    The source is untrusted: it runs in a sandbox and within a budget of work. Whatever goes
    wrong in it is a ChatTemplateError. May be shared by threads.
    """

    def __init__(
        self,
        source: str,
        bos_token: str | None = None,
        eos_token: str | None = None,
        **special_tokens: str,
    ) -> None:
        # Imported here: Jinja takes a while to import, and completion does not need it.
        from enginewright.runtime.sandbox.rendering import CompiledTemplate

        self._template = CompiledTemplate(source)
        tokens = {"bos_token": bos_token, "eos_token": eos_token, **special_tokens}
        self._tokens = {name: token for name, token in tokens.items() if token is not None}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool = False,
        chat_template_content_format: ContentFormat = "auto",
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt for the messages; ``kwargs`` (enable_thinking...) reach the template too.

        Messages are dicts with a role and a content: a string, or a list of text parts. "auto"
        hands parts to a template that loops over them and joins them by newlines for another;
        "string" always joins; "openai" makes parts of strings too. ``continue_final_message``
        leaves the last message open, to be continued.
        """
        _check_modes(add_generation_prompt, continue_final_message, chat_template_content_format)
        values: dict[str, Any] = {
            **self._tokens,
            **_plain(kwargs, "chat template arguments"),
            "tools": _objects("tools", tools),
            "documents": _objects("documents", documents),
            "messages": self._checked(messages, chat_template_content_format),
            "add_generation_prompt": add_generation_prompt,
        }
        if continue_final_message:
            return self._render_open(values)
        return self._rendered(values)

    def _rendered(self, values: dict[str, Any]) -> str:
        try:
            return self._template.render(values)
        except ChatTemplateError:
            messages = values["messages"]
            if all("content" in message for message in messages):
                raise
            # Templates of models without tools read every message's; like vLLM, it is empty then.
            filled = [{"content": "", **message} for message in messages]
            return self._template.render({**values, "messages": filled})

    def _render_open(self, values: dict[str, Any]) -> str:
        """The prompt up to the end of the last message's text, found by a mark put behind it."""
        last = values["messages"][-1]
        content = last.get("content")
        text = content[-1]["text"] if isinstance(content, list) and content else content
        if not isinstance(text, str):
            raise PromptError("continue_final_message, but the last message has no text")
        if isinstance(content, list):
            content[-1]["text"] = text + _HERE
        else:
            last["content"] = text + _HERE
        rendered = self._rendered(values)
        at = rendered.rfind(_HERE.strip())
        if at < 0 or text.strip() not in rendered:
            raise ChatTemplateError(
                "continue_final_message, but the chat template does not write the last message as "
                "it is; leave continue_final_message out, or give another chat_template"
            )
        opened = rendered[:at]
        return opened if rendered.startswith(_HERE, at) else opened.rstrip()

    def _checked(self, messages: object, form: ContentFormat) -> list[dict[str, Any]]:
        if not isinstance(messages, (list, tuple)) or not messages:
            raise PromptError(
                f"messages must be a list of at least one dict with role and content, "
                f"not {messages!r:.80}"
            )
        return [self._message(index, message, form) for index, message in enumerate(messages)]

    def _message(self, index: int, message: object, form: ContentFormat) -> dict[str, Any]:
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
            plain["content"] = self._content(plain["content"], f"{where}.content", form)
        return _with_reasoning(plain)

    def _content(self, content: object, where: str, form: ContentFormat) -> str | list[Any]:
        if isinstance(content, str):
            return [{"type": "text", "text": content}] if form == "openai" else content
        if not isinstance(content, list):
            raise PromptError(f"{where} must be text or a list of text parts, not {content!r:.80}")
        texts = [_part_text(part, f"{where}[{index}]") for index, part in enumerate(content)]
        as_parts = self._template.wants_parts if form == "auto" else form == "openai"
        return content if as_parts else "\n".join(texts)


def template_arguments(given: object) -> dict[str, Any]:
    """``chat_template_kwargs``, which may also set what ``render`` names itself."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise RequestError(
            f"chat_template_kwargs={given!r:.80} is not legal: it must be a dict of the names and "
            f"values that the template reads"
        )
    for name in _NOT_FOR_TEMPLATES:
        if name in given:
            raise RequestError(f"chat_template_kwargs holds {name!r}, which a template cannot take")
    return dict(given)


def with_parsed_calls(messages: Any) -> Any:
    """Messages whose tool calls hold their arguments as a dict, where an API has them as JSON.

    What is no list of messages is left as it is, for ``render`` to refuse.
    """
    if not isinstance(messages, (list, tuple)):
        return messages
    return [_with_parsed_calls(index, message) for index, message in enumerate(messages)]


def _with_parsed_calls(index: int, message: Any) -> Any:
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    if not isinstance(calls, (list, tuple)):
        return message
    if not calls:  # templates test whether the key is there
        return {name: value for name, value in message.items() if name != "tool_calls"}
    where = f"messages[{index}].tool_calls"
    parsed = [_parsed_call(call, f"{where}[{at}]") for at, call in enumerate(calls)]
    return {**message, "tool_calls": parsed}


def _parsed_call(call: Any, where: str) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if not isinstance(arguments, str):
        return call
    try:
        parsed = json.loads(arguments) if arguments else {}
    except (ValueError, RecursionError) as error:
        raise PromptError(
            f"{where}.function.arguments is not JSON ({error}): {arguments!r:.80}"
        ) from error
    return {**call, "function": {**call["function"], "arguments": parsed}}


def _check_modes(add_generation_prompt: object, continue_last: object, form: object) -> None:
    for name, value in (
        ("add_generation_prompt", add_generation_prompt),
        ("continue_final_message", continue_last),
    ):
        if not isinstance(value, bool):
            raise illegal(name, value, "True or False", RequestError)
    if add_generation_prompt and continue_last:
        raise RequestError(
            "add_generation_prompt and continue_final_message are both set: the first begins a "
            "new message, the second goes on with the last one; to go on, give "
            "add_generation_prompt=False"
        )
    if form not in get_args(ContentFormat):
        legal = ", ".join(map(repr, get_args(ContentFormat)))
        raise RequestError(f"chat_template_content_format={form!r:.80}: legal are {legal}")


def _objects(name: str, given: object) -> list[dict[str, Any]] | None:
    """Tools or documents as plain data."""
    if given is None:
        return None
    legal = "a list of dicts, each a function's JSON schema"
    if name == "documents":
        legal = "a list of dicts, each with a title and a text"
    if not isinstance(given, (list, tuple)) or any(map(callable, given)):
        raise PromptError(f"{name}={given!r:.80} is not legal: it must be {legal}")
    plain = _plain(given, name)
    if not all(isinstance(item, dict) for item in plain):
        raise PromptError(f"{name}={given!r:.80} is not legal: it must be {legal}")
    return list(plain)


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
