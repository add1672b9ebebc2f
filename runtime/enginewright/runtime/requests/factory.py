"""Prompts and parameters become requests: tokenized, checked, with everything that they need."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, Unpack

import numpy as np

from enginewright.runtime.beam_search.run import BeamJobs
from enginewright.runtime.engine import EngineInfo
from enginewright.runtime.errors import (
    ContextLengthError,
    RequestError,
    SamplingParamsError,
)
from enginewright.runtime.explain import Explanation, explain
from enginewright.runtime.requests.arguments import (
    ChatOptions,
    Tokenization,
    check_chat_options,
)
from enginewright.runtime.requests.generation import Generation, Request
from enginewright.runtime.requests.group import RequestGroup
from enginewright.runtime.requests.prompts import Conversation, TokensPrompt, check_ids, read_prompt
from enginewright.runtime.sampling.bad_words import tokenize_words
from enginewright.runtime.sampling.custom import LogitsProcessor
from enginewright.runtime.sampling.defaults import Defaults
from enginewright.runtime.sampling.grammar import Grammar, GrammarCompiler
from enginewright.runtime.sampling.logprobs import check_logprobs
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.sampler import Sampler
from enginewright.runtime.text.chat import template_arguments, with_parsed_calls
from enginewright.runtime.text.detokenizer import IncrementalDetokenizer
from enginewright.runtime.text.prompt_warnings import PromptWarnings
from enginewright.runtime.text.templates import Templates
from enginewright.runtime.text.tokenizer import Tokenizer

T = TypeVar("T")

_PLAIN = Tokenization()


@dataclass(frozen=True)
class RequestFactory:
    """Makes the requests of one loaded engine. May be used by several threads at a time.

    ``seed``: makes requests without one repeatable, by their numbers. ``max_logprobs``: the most
    that a request may ask for. ``logits_processors``: see every request's logits before its own.
    """

    info: EngineInfo
    tokenizer: Tokenizer
    templates: Templates
    warnings: PromptWarnings
    defaults: Defaults
    eos_token_ids: tuple[int, ...]
    seed: int | None = None
    max_logprobs: int | None = None
    logits_processors: Sequence[LogitsProcessor] = ()
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def groups(
        self,
        prompts: Sequence[Any],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        tokenization: Tokenization = _PLAIN,
    ) -> list[RequestGroup]:
        """The requests of the prompts, all valid, none running yet; errors name the index."""
        params = self.params_for(len(prompts), sampling_params)
        pairs = list(zip(prompts, params, strict=True))
        return for_each(lambda pair: self.group(pair[0], pair[1], tokenization), pairs)

    def group(
        self,
        prompt: Any,
        params: SamplingParams,
        tokenization: Tokenization = _PLAIN,
        numbers: Sequence[int] | None = None,
    ) -> RequestGroup:
        """The request of one prompt; ``numbers``: those that were taken for its outputs."""
        check_logprobs(params, self.max_logprobs)
        numbers = numbers or self.take_numbers(params)
        text, tokens = self.read(prompt, tokenization, params.max_tokens)
        seed = self._seed_of(numbers[0])
        made = params.structured_outputs
        grammar = None if made is None else self.grammars.compile(made)
        requests = [
            Request(number, text, tuple(tokens), params, index)
            for index, number in enumerate(numbers)
        ]
        return RequestGroup([self._generation(each, seed, grammar) for each in requests])

    def take_numbers(self, params: SamplingParams) -> list[int]:
        """One for each output; they give requests without a seed theirs, so their order counts."""
        return [next(self.numbers) for _ in range(params.n)]

    def params_for(
        self, count: int, given: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        """The parameters of each of ``count`` prompts; warns where the model's own are used."""
        if given is None:
            self.warnings.defaults(self.defaults)
            return [self.defaults.params] * count
        if isinstance(given, SamplingParams):
            return [given] * count
        items = given if isinstance(given, Sequence) else [given]
        for item in items:
            if not isinstance(item, SamplingParams):
                raise SamplingParamsError(
                    f"sampling_params={item!r:.80}: give a SamplingParams, or a list with one for "
                    f"each prompt"
                )
        if len(given) != count:
            raise SamplingParamsError(
                f"{len(given)} sampling_params for {count} prompts: give one, or one for each "
                f"prompt"
            )
        return list(given)

    def read(
        self, prompt: Any, tokenization: Tokenization = _PLAIN, max_tokens: int | None = None
    ) -> tuple[str | None, list[int]]:
        """A prompt's text, if it has one, and its token ids, which leave room for one more."""
        text, ids = read_prompt(prompt)
        given = ids is not None
        if ids is None:
            ids = self._encode(
                text or "", tokenization, tokenization.add_special_tokens is not False
            )
        most = max(1, self.info.max_context - (max_tokens or 1))
        tokens = self.fitting(tokenization.truncated(ids, most), room=1)
        self.warnings.prompt(None if given else text, tokens)
        return text, tokens

    def renderer(
        self, tokenization: Tokenization = _PLAIN, **options: Unpack[ChatOptions]
    ) -> Callable[[Conversation], TokensPrompt]:
        """Conversation to prompt. Templates write BOS themselves, so by default none is added."""
        check_chat_options(options)
        template = self.templates.get(options.get("chat_template"))
        settings: dict[str, Any] = dict(options)
        settings |= template_arguments(settings.pop("chat_template_kwargs", None))
        settings.pop("chat_template", None)

        def render(messages: Conversation) -> TokensPrompt:
            text = template.render(with_parsed_calls(messages), **settings)
            ids = self._encode(text, tokenization, tokenization.add_special_tokens is True)
            return {"prompt": text, "prompt_token_ids": ids}

        return render

    def _encode(self, text: str, tokenization: Tokenization, special: bool) -> list[int]:
        """Refuses what cannot fit however it is cut, before it costs seconds to cut it."""
        limit, cut = self.info.max_context, tokenization.truncate_prompt_tokens is not None
        if not cut and len(text) > limit and len(text) > limit * self.tokenizer.longest_token:
            raise ContextLengthError(
                f"the prompt has {len(text)} characters: more than this engine's {limit} tokens "
                f"can hold; shorten the prompt, or build the artifact again with a larger "
                f"limits.max_context"
            )
        return self.tokenizer.encode(text, special)

    def fitting(self, ids: Sequence[Any], room: int = 0) -> list[int]:
        """The ids, if they are legal and leave ``room`` for more."""
        tokens = check_ids(ids, self.info.vocab_size)
        limit = self.info.max_context
        if len(tokens) + room > limit:
            beside = f" and at least {room} for the output" if room else ""
            raise ContextLengthError(
                f"the prompt has {len(tokens)} tokens{beside}, this engine's limit is {limit} "
                f"tokens; shorten the prompt, raise max_context or kv_cache_memory_bytes if they "
                f"lower it, or build the artifact again with a larger limits.max_context"
            )
        return tokens

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """What structured outputs are compiled by."""
        return GrammarCompiler(self.tokenizer, self.info.vocab_size, self.eos_token_ids)

    def beam_jobs(self, tokenization: Tokenization = _PLAIN) -> BeamJobs:
        """What makes beam searches."""
        return BeamJobs(
            self.tokenizer,
            self.info,
            self.eos_token_ids,
            self.numbers,
            lambda prompt, max_tokens: self.read(prompt, tokenization, max_tokens),
            lambda form: self.grammars.compile(form).start(),
        )

    def explain(
        self, params: SamplingParams | None, given: Mapping[str, str] | None = None
    ) -> Explanation:
        """What a call with these parameters would run with; ``given``: see explain.explain."""
        if params is not None and not isinstance(params, SamplingParams):
            raise SamplingParamsError(
                f"explain() got a {type(params).__name__}: legal is a SamplingParams, or None for "
                f"what a call without parameters uses"
            )
        facts: dict[str, tuple[Any, str]] = {
            "eos_token_ids": (list(self.eos_token_ids), "the model's tokenizer and configs")
        }
        if self.logits_processors:
            facts["LLM's logits_processors"] = (len(self.logits_processors), "the LLM's option")
        if self.seed is not None and (params or self.defaults.params).seed is None:
            facts["LLM's seed"] = (self.seed, "the LLM's option: each request's seed comes from it")
        if params is None:
            return explain(self.defaults.params, self.defaults, given={}, facts=facts)
        return explain(params, self.defaults, given=given, facts=facts)

    def _generation(
        self, request: Request, seed: int | None, grammar: Grammar | None
    ) -> Generation:
        params, prompt = request.params, request.prompt_token_ids
        eos = self.eos_token_ids
        detokenizer = None
        if params.detokenize:
            detokenizer = IncrementalDetokenizer(
                self.tokenizer,
                params.stop_strings,
                params.include_stop_str_in_output,
                params.skip_special_tokens,
                prompt,
                params.min_tokens,
            )
        sampler = Sampler(
            params,
            self.info.vocab_size,
            eos,
            prompt,
            seed,
            request.index,
            tokenize_words(params.bad_words or (), self.tokenizer),
            grammar,
            self.logits_processors,
        )
        return Generation(
            request,
            sampler,
            max_context=self.info.max_context,
            eos_token_ids=eos,
            detokenizer=detokenizer,
            token_text=lambda token: self.tokenizer.decode([token], skip_special_tokens=False),
        )

    def _seed_of(self, number: int) -> int | None:
        """A seed of its own for every request: equal prompts must not have equal answers."""
        if self.seed is None:
            return None
        return int(np.random.SeedSequence([self.seed, number]).generate_state(1, np.uint64)[0])


def for_each(function: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """The function's values; a RequestError of one of several names its index."""
    found = []
    for index, item in enumerate(items):
        try:
            found.append(function(item))
        except RequestError as error:
            if len(items) == 1:
                raise
            raise type(error)(f"prompt {index}: {error}") from error
    return found
