"""What a call may ask beside its prompts and sampling parameters, checked."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from enginewright.runtime.errors import ArgumentError, RequestError
from enginewright.runtime.progress import UseTqdm, check_progress
from enginewright.runtime.sampling.checks import among, maybe_whole
from enginewright.runtime.text.chat import ChatTemplate, ContentFormat
from enginewright.runtime.text.templates import TemplateSource


class CallOptions(TypedDict, total=False):
    """What every call of vLLM takes: see ``LLM.generate``."""

    use_tqdm: UseTqdm
    lora_request: None
    priority: Sequence[int] | int | None
    tokenization_kwargs: Mapping[str, Any] | None
    mm_processor_kwargs: Mapping[str, Any] | None


class ChatOptions(TypedDict, total=False):
    """How a conversation becomes a prompt: see ``LLM.chat``."""

    chat_template: TemplateSource | ChatTemplate | None
    chat_template_content_format: ContentFormat
    add_generation_prompt: bool
    continue_final_message: bool
    tools: Sequence[Mapping[str, Any]] | None
    chat_template_kwargs: Mapping[str, Any] | None


@dataclass(frozen=True)
class Tokenization:
    """How a prompt becomes token ids.

    ``add_special_tokens``: None adds them to text and not to what a chat template wrote, which has
    its own. ``truncate_prompt_tokens``: keep so many of the last tokens; -1: what leaves room for
    max_tokens.
    """

    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None

    @staticmethod
    def of(tokenization_kwargs: Any) -> Tokenization:
        """Read ``tokenization_kwargs``; RequestError names what is not legal."""
        if tokenization_kwargs is None:
            return Tokenization()
        legal = "add_special_tokens and truncate_prompt_tokens"
        if not isinstance(tokenization_kwargs, Mapping):
            raise RequestError(
                f"tokenization_kwargs={tokenization_kwargs!r:.80} is not legal: it must be a dict "
                f"with {legal}"
            )
        given = dict(tokenization_kwargs)
        special = given.pop("add_special_tokens", None)
        count = given.pop("truncate_prompt_tokens", None)
        if given:
            raise RequestError(
                f"tokenization_kwargs holds {next(iter(given))!r:.80}, which is not supported: "
                f"legal are {legal}"
            )
        if special is not None and not isinstance(special, bool):
            raise RequestError(
                f"add_special_tokens={special!r:.80} is not legal: it must be True or False"
            )
        name = "truncate_prompt_tokens"
        hint = "None to keep all, or -1 for what leaves room for max_tokens"
        most = maybe_whole(name, count, -1, otherwise=hint, error=RequestError)
        if most == 0:
            raise RequestError(f"{name}=0 is not legal: it must be 1 or more, {hint}")
        return Tokenization(special, most)

    def truncated(self, ids: list[int], most: int) -> list[int]:
        """The last tokens; ``most``: how many leave room for the output."""
        if self.truncate_prompt_tokens is None:
            return ids
        count = most if self.truncate_prompt_tokens == -1 else self.truncate_prompt_tokens
        return ids[-count:]


def check_chat_options(options: Mapping[str, Any]) -> None:
    """Refuse a misspelt one: a template would get it as a variable, and nobody would see."""
    hint = "chat_template_kwargs= reach the template"
    _check_names("a chat", options, ChatOptions.__optional_keys__, hint)


def check_call_options(method: str, options: Mapping[str, Any]) -> None:
    """Refuse what ``read_call`` does not take."""
    legal = CallOptions.__optional_keys__
    _check_names(method, options, legal, f"legal are {', '.join(sorted(legal))}")


def _check_names(
    owner: str, options: Mapping[str, Any], legal: Collection[str], otherwise: str
) -> None:
    for name in options.keys() - legal:
        near = difflib.get_close_matches(name, legal, n=1)
        hint = f"did you mean {near[0]}?" if near else otherwise
        raise ArgumentError(f"{owner} has no argument {name!r}; {hint}")


def read_call(
    *,
    use_tqdm: UseTqdm = True,
    lora_request: Any = None,
    priority: Any = None,
    tokenization_kwargs: Any = None,
    mm_processor_kwargs: Any = None,
) -> Tokenization:
    """Refuse what vLLM's methods take and a built engine cannot do; the rest is tokenization."""
    check_progress(use_tqdm)
    if lora_request is not None:
        raise RequestError(
            f"lora_request={lora_request!r:.80} is unsupported: a built engine has no adapters; "
            f"merge the adapter into the checkpoint and build that"
        )
    if not among(mm_processor_kwargs, (None, {})):
        raise RequestError(
            f"mm_processor_kwargs={mm_processor_kwargs!r:.80} is unsupported: engines take text "
            f"only"
        )
    given = priority if isinstance(priority, Sequence) else [priority]
    if not all(among(each, (None, 0)) for each in given):
        raise RequestError(
            f"priority={priority!r:.80} is unsupported: requests run in the order of arrival; "
            f"leave it out"
        )
    return Tokenization.of(tokenization_kwargs)
