"""What a request gives to go on from becomes token ids. Runs on a thread beside the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enginewright.runtime import TokensPrompt
from enginewright.runtime.errors import PromptError
from enginewright.runtime.requests.arguments import Tokenization
from enginewright.runtime.requests.factory import for_each
from enginewright.runtime.requests.prompts import split_prompts
from enginewright.server.errors import FieldError
from enginewright.server.registry import ServedModel


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt that fits the engine; ``text`` is None where it came as ids, or was cut."""

    text: str | None
    ids: list[int]

    @property
    def as_prompt(self) -> TokensPrompt:
        """As the engine takes it."""
        if self.text is None:
            return {"prompt_token_ids": self.ids}
        return {"prompt": self.text, "prompt_token_ids": self.ids}


@dataclass(frozen=True)
class Reading:
    """How prompts are read. ``max_tokens``: what the output may need, None: what is left.

    ``asked``: the field by which the client asked for so many tokens, if it did.
    """

    tokenization: Tokenization
    max_tokens: int | None
    asked: str | None


def read_prompts(
    model: ServedModel, given: object, reading: Reading, most: int
) -> list[ReadPrompt]:
    """Of completions: a text, token ids, or a list of either."""
    if isinstance(given, Mapping) or not isinstance(given, (str, list)):
        raise FieldError(
            "prompt",
            f"prompt of type {type(given).__name__}: legal is text, a list of token ids, "
            f"or a list of either",
        )
    try:
        prompts = split_prompts(given)
        if not prompts:
            raise FieldError("prompt", "prompt is an empty list: at least one prompt is needed")
        if len(prompts) > most:
            raise FieldError("prompt", f"{len(prompts)} prompts: this server takes {most} at once")
        return for_each(lambda prompt: read(model, prompt, reading), prompts)
    except PromptError as error:
        raise FieldError("prompt", str(error)) from error


def read_conversation(
    model: ServedModel,
    messages: Sequence[Mapping[str, Any]],
    reading: Reading,
    template: Mapping[str, Any],
) -> ReadPrompt:
    """Of chat; ``template``: how the conversation becomes text."""
    render = model.engine.requests.renderer(
        reading.tokenization,
        chat_template_content_format=model.options.chat_template_content_format,
        **template,
    )
    try:
        return read(model, render(messages), reading)
    except PromptError as error:
        raise FieldError("messages", str(error)) from error


def read(model: ServedModel, prompt: Any, reading: Reading) -> ReadPrompt:
    """The ids of one prompt, which leave room for what is to come."""
    requests, cut = model.engine.requests, reading.tokenization.truncate_prompt_tokens is not None
    text, ids = requests.read(prompt, reading.tokenization, reading.max_tokens)
    limit = model.engine.max_context
    if reading.asked and len(ids) + (reading.max_tokens or 0) > limit:
        raise FieldError(
            reading.asked,
            f"{reading.asked}={reading.max_tokens} is too large: the prompt has {len(ids)} tokens, "
            f"and this model's limit is {limit} tokens in all; ask for {limit - len(ids)} at most, "
            f"or shorten the prompt",
        )
    return ReadPrompt(None if cut else text, ids)


def prompt_text(model: ServedModel, prompt: ReadPrompt) -> str:
    """What is echoed."""
    if prompt.text is not None:
        return prompt.text
    return model.engine.get_tokenizer().decode(prompt.ids, skip_special_tokens=False)
