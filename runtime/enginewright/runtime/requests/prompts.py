"""The forms that a prompt may have: text, token ids, or a dict of either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias, TypedDict

from enginewright.runtime.errors import PromptError
from enginewright.runtime.sampling.checks import among


class TextPrompt(TypedDict):
    """A prompt as text."""

    prompt: str


class _TokenIds(TypedDict):
    prompt_token_ids: Sequence[int]


class TokensPrompt(_TokenIds, total=False):
    """A prompt as token ids; ``prompt`` is kept for the output and not encoded."""

    prompt: str


Conversation: TypeAlias = Sequence[Mapping[str, Any]]
Prompt: TypeAlias = str | Sequence[int] | TextPrompt | TokensPrompt
Prompts: TypeAlias = Prompt | Sequence[Prompt]

# Keys of vLLM's prompts that may be there, empty, and why nothing may be in them.
_NEUTRAL = {
    "multi_modal_data": "engines take text only",
    "multi_modal_uuids": "engines take text only",
    "mm_processor_kwargs": "engines take text only",
    "prompt_embeds": "prompts are text or token ids",
    "cache_salt": "what requests have in common is shared among all of them",
}

LEGAL = (
    'a string, a list of token ids, {"prompt": "..."} or {"prompt_token_ids": [...]}, '
    "or a list of these"
)


def split_prompts(prompts: Any) -> list[Any]:
    """One prompt or many, as a list of prompts that are yet to be read."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if not is_list(prompts):
        raise PromptError(f"prompts of type {type(prompts).__name__}: legal is {LEGAL}")
    if len(prompts) and isinstance(prompts[0], Integral):
        return [prompts]
    return list(prompts)


def split_conversations(messages: Any) -> list[Conversation]:
    """One conversation (a list of messages) or a list of them, as a list."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise PromptError(
            f"messages of type {type(messages).__name__}: legal is a list of messages, each like "
            f'{{"role": "user", "content": "..."}}, or a list of such lists'
        )
    if messages and isinstance(messages[0], Mapping):
        return [messages]
    if not messages:
        raise PromptError("the conversation is empty: at least one message is needed")
    return list(messages)


def read_prompt(prompt: Any) -> tuple[str | None, list[int] | None]:
    """The text and the token ids of a prompt; at least one of them is there."""
    if isinstance(prompt, Mapping):
        return _read_mapping(prompt)
    if isinstance(prompt, str):
        return _text(prompt), None
    if is_list(prompt):
        return None, _ids(prompt)
    raise PromptError(f"a prompt of type {type(prompt).__name__}: legal is {LEGAL}")


def check_ids(ids: Sequence[Any], vocab_size: int) -> list[int]:
    """The ids as plain integers, all in the vocabulary, at least one."""
    tokens = _ids(ids)
    for position, token in enumerate(tokens):
        if not 0 <= token < vocab_size:
            raise PromptError(
                f"token id {token} at position {position} is outside the vocabulary: "
                f"legal are 0 to {vocab_size - 1}"
            )
    return tokens


def _read_mapping(prompt: Mapping[str, Any]) -> tuple[str | None, list[int] | None]:
    for key, reason in _NEUTRAL.items():
        if not among(prompt.get(key), (None, {}, "")):
            raise PromptError(f"a prompt with {key!r} is unsupported: {reason}")
    unknown = prompt.keys() - {"prompt", "prompt_token_ids", *_NEUTRAL}
    if unknown:
        names = ", ".join(sorted(map(repr, unknown)))
        raise PromptError(f"a prompt with the key {names}: legal is {LEGAL}")
    text = prompt.get("prompt")
    if "prompt_token_ids" in prompt:
        ids = _ids(prompt["prompt_token_ids"])
        return (None if text is None else _text(text)), ids
    return _text(text), None


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise PromptError(f"a prompt of type {type(text).__name__}: legal is {LEGAL}")
    if not text:
        raise PromptError("the prompt is empty: at least one character is needed")
    return text


def _ids(ids: Any) -> list[int]:
    if not is_list(ids):
        raise PromptError(f"token ids of type {type(ids).__name__}: a list of int is needed")
    for position, token in enumerate(ids):
        if not isinstance(token, Integral) or isinstance(token, bool):
            raise PromptError(f"token id {token!r} at position {position}: an int is needed")
    if not len(ids):
        raise PromptError("the prompt is empty: at least one token is needed")
    return [int(token) for token in ids]


def is_list(value: Any) -> bool:
    """Lists, tuples and numpy arrays with a dimension; not strings or bytes."""
    if isinstance(value, (str, bytes, bytearray, Mapping)) or getattr(value, "ndim", 1) == 0:
        return False
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")
