"""LLM: an artifact, loaded. Text, token ids or messages in, RequestOutputs out."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import numpy as np

from enginewright.runtime import options, scoring
from enginewright.runtime.artifact import Artifact, Verify
from enginewright.runtime.chat import ContentFormat, template_arguments, with_parsed_calls
from enginewright.runtime.core import EngineCore
from enginewright.runtime.detokenizer import IncrementalDetokenizer
from enginewright.runtime.engine import EngineInfo
from enginewright.runtime.errors import (
    ContextLengthError,
    EnginewrightError,
    PromptError,
    RequestError,
    SamplingParamsError,
)
from enginewright.runtime.generation import Generation, Request
from enginewright.runtime.group import RequestGroup
from enginewright.runtime.linter import Facts
from enginewright.runtime.manifest import Manifest
from enginewright.runtime.options import GenerationConfig
from enginewright.runtime.outputs import RequestOutput
from enginewright.runtime.plans import open_plan
from enginewright.runtime.prompt_warnings import PromptWarnings
from enginewright.runtime.prompts import Prompt, Prompts, check_ids, read_prompt, split_prompts
from enginewright.runtime.sampling.bad_words import tokenize_words
from enginewright.runtime.sampling.kinds import RequestOutputKind
from enginewright.runtime.sampling.params import SamplingParams
from enginewright.runtime.sampling.sampler import Sampler
from enginewright.runtime.scheduler import MAX_TOKENS_PER_STEP
from enginewright.runtime.templates import Templates
from enginewright.runtime.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Message = Mapping[str, Any]
Conversation = Sequence[Message]
P = ParamSpec("P")
T = TypeVar("T")


class LLM:
    """A loaded artifact. One thread uses it at a time; ``close`` it, or use it in ``with``.

    ``target`` and ``plan``: which of the artifact's engines, by default the first that runs here.
    ``allow_native_code``: True runs an artifact's own operators whoever compiled them, False never,
    None if this machine did. ``threads``: by default all cores that the process may use.
    ``max_batch``, ``max_context``: lower the engine's limits. ``seed``: makes requests without a
    seed of their own repeatable, in their order; by default they take fresh entropy. ``verify``:
    see Artifact.open. ``chat_template``: a path or a template, in place of the artifact's.
    ``generation_config``: "auto" takes the model's own sampling defaults when a call gives no
    ``sampling_params``, "vllm" the neutral ones.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        target: str | None = None,
        threads: int | None = None,
        seed: int | None = None,
        max_batch: int | None = None,
        max_context: int | None = None,
        verify: Verify = "cached",
        chat_template: str | os.PathLike[str] | None = None,
        generation_config: GenerationConfig = "auto",
        plan: str | None = None,
        allow_native_code: bool | None = None,
    ) -> None:
        threads = options.check_threads(threads)
        self._seed = options.check_seed(seed)
        artifact = Artifact.open(options.check_path(model), verify)
        self._defaults = options.default_params(artifact.manifest, generation_config)
        self._manifest = artifact.manifest
        self._tokenizer = Tokenizer.from_file(artifact.file("tokenizer.json"))
        self._templates = Templates(artifact, chat_template)
        facts = Facts.of(artifact, self._tokenizer, self._templates.source)
        self._warnings = PromptWarnings(facts)
        self._ids = itertools.count()
        engine, entry = open_plan(
            artifact,
            target=target,
            plan=plan,
            allow_native_code=allow_native_code,
            threads=threads,
            limited=lambda entry: options.lower_limits(entry, max_batch, max_context),
        )
        self._plan = entry.plan
        self._info = engine.describe()
        self._core: EngineCore | None = EngineCore(engine)

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Continue every prompt; outputs come in the order of the prompts.

        All prompts and parameters are checked before anything runs; an error names the prompt's
        index. ``use_tqdm`` is taken for vLLM's callers and draws nothing. A request that fails
        while it runs has finish_reason "error" and harms no other; when all of a call fail, the
        first one's error is raised.
        """
        return self._run_all(self._prepare(split_prompts(prompts), sampling_params))

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        chat_template: str | os.PathLike[str] | None = None,
        chat_template_content_format: ContentFormat = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of a list of them; see ``generate``.

        ``continue_final_message`` goes on with the last message instead (then give
        ``add_generation_prompt=False``). ``chat_template_kwargs`` (documents, enable_thinking...)
        reach the template. For content and its format see ChatTemplate.render.
        """
        conversations = split_conversations(messages)
        render = self._renderer(
            chat_template,
            chat_template_kwargs,
            chat_template_content_format=chat_template_content_format,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
        )
        prompts = [
            _named(index, len(conversations), render, conversation)
            for index, conversation in enumerate(conversations)
        ]
        return self._run_all(self._prepare(prompts, sampling_params))

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Generator[RequestOutput]:
        """Continue one prompt and yield what is new after each token.

        ``outputs[0].text`` and ``.token_ids`` hold only what came since the last yield; joined,
        the texts are the text that ``generate`` gives. With ``n`` > 1 ``outputs`` are those that
        have something new, by their ``index``. Checked at once, run as it is iterated;
        leaving the loop early aborts the request. An error while it runs is raised.
        """
        (group,) = self._prepare([prompt], sampling_params)
        return self._stream(group)

    def stream_chat(
        self,
        messages: Conversation,
        sampling_params: SamplingParams | None = None,
        *,
        chat_template: str | os.PathLike[str] | None = None,
        chat_template_content_format: ContentFormat = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Generator[RequestOutput]:
        """Answer one conversation, as ``stream`` does; the rest as in ``chat``."""
        render = self._renderer(
            chat_template,
            chat_template_kwargs,
            chat_template_content_format=chat_template_content_format,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
        )
        (group,) = self._prepare([render(messages)], sampling_params)
        return self._stream(group)

    def logits(self, token_ids: Sequence[int], *, chunk: int | None = None) -> scoring.Logits:
        """Logits [S, V] after every token of one sequence; row t follows the tokens 0..t.

        The engine's own steps take ``chunk`` tokens each (1: decode steps), by default as many
        as a prompt's. No stream may be running.
        """
        core = self._idle_core("logits")
        ids = self._fitting(token_ids)
        return scoring.sequence_logits(core, self._info, ids, self._chunk(chunk, len(ids)))

    def batch_logits(self, sequences: Sequence[Sequence[int]]) -> list[scoring.Logits]:
        """Logits [S, V] of each sequence, all computed in one ragged prefill step.

        With an engine that is batch invariant, bitwise those of each sequence alone.
        """
        core = self._idle_core("batch_logits")
        limit = min(self._info.max_batch, self._info.steps.prefill)
        if not 1 <= len(sequences) <= limit:
            raise PromptError(f"{len(sequences)} sequences: a batch may hold 1 to {limit}")
        fitting = [
            _named(index, len(sequences), self._fitting, ids) for index, ids in enumerate(sequences)
        ]
        return scoring.batch_logits(core, fitting)

    def get_tokenizer(self) -> Tokenizer:
        """The artifact's tokenizer."""
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What a call without ``sampling_params`` uses."""
        return self._defaults

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def engine_info(self) -> EngineInfo:
        """What the engine declares, after ``max_batch`` and ``max_context``."""
        return self._info

    @property
    def plan(self) -> str:
        """Which of the artifact's plans runs."""
        return self._plan

    @property
    def max_batch(self) -> int:
        """Requests that run together; more wait."""
        return self._info.max_batch

    @property
    def max_context(self) -> int:
        """Tokens of prompt and output together that a request may have."""
        return self._info.max_context

    def close(self) -> None:
        """Free the engine; streams that are open end. Closing twice is allowed."""
        if self._core is not None:
            self._core.close()
            self._core = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open_core(self) -> EngineCore:
        if self._core is None:
            raise EnginewrightError("this LLM was closed; open the artifact again")
        return self._core

    def _idle_core(self, method: str) -> EngineCore:
        core = self._open_core()
        if core.busy:
            raise RequestError(f"{method}() while a stream is running: finish or close it first")
        return core

    def _renderer(
        self,
        chat_template: str | os.PathLike[str] | None,
        chat_template_kwargs: Mapping[str, Any] | None,
        **settings: Any,
    ) -> Callable[[Conversation], Prompt]:
        """Conversation to prompt. The template writes BOS itself, so that none is added."""
        settings |= template_arguments(chat_template_kwargs)
        template = self._templates.get(chat_template)

        def render(messages: Conversation) -> Prompt:
            text = template.render(with_parsed_calls(messages), **settings)
            ids = self._tokenizer.encode(text, add_special_tokens=False)
            return {"prompt": text, "prompt_token_ids": ids}

        return render

    def _prepare(
        self,
        prompts: Sequence[Any],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[RequestGroup]:
        """The requests of the prompts, all valid, none running yet."""
        self._open_core()
        params = _params_for(len(prompts), sampling_params, self._defaults)
        if sampling_params is None:
            self._warnings.defaults(self._defaults)
        pairs = enumerate(zip(prompts, params, strict=True))
        return [_named(index, len(prompts), self._group, *pair) for index, pair in pairs]

    def _group(self, prompt: Any, params: SamplingParams) -> RequestGroup:
        text, ids = read_prompt(prompt)
        tokens = self._fitting(self._tokenizer.encode(text or "") if ids is None else ids, room=1)
        self._warnings.prompt(text if ids is None else None, tokens)
        numbers = [next(self._ids) for _ in range(params.n)]
        seed = self._seed_of(numbers[0])
        return RequestGroup(
            [
                self._generation(Request(number, text, tuple(tokens), params, index), seed)
                for index, number in enumerate(numbers)
            ]
        )

    def _generation(self, request: Request, seed: int | None) -> Generation:
        params, prompt = request.params, request.prompt_token_ids
        eos = self._manifest.eos_token_ids
        words = tokenize_words(params.bad_words or (), self._tokenizer)
        detokenizer = None
        if params.detokenize:
            detokenizer = IncrementalDetokenizer(
                self._tokenizer,
                params.stop_strings,
                params.include_stop_str_in_output,
                params.skip_special_tokens,
                prompt,
                params.min_tokens,
            )
        return Generation(
            request,
            Sampler(params, self._info.vocab_size, eos, prompt, seed, request.index, words),
            max_context=self._info.max_context,
            eos_token_ids=eos,
            detokenizer=detokenizer,
            token_text=lambda token: self._tokenizer.decode([token], skip_special_tokens=False),
        )

    def _seed_of(self, number: int) -> int | None:
        """A seed of its own for every request: equal prompts must not have equal answers."""
        if self._seed is None:
            return None
        return int(np.random.SeedSequence([self._seed, number]).generate_state(1, np.uint64)[0])

    def _fitting(self, ids: Sequence[Any], room: int = 0) -> list[int]:
        """The ids, if they are legal and leave ``room`` for more."""
        tokens = check_ids(ids, self._info.vocab_size)
        limit = self._info.max_context
        if len(tokens) + room > limit:
            beside = f" and at least {room} for the output" if room else ""
            raise ContextLengthError(
                f"the prompt has {len(tokens)} tokens{beside}, this engine's limit is {limit} "
                f"tokens; shorten the prompt, or build the artifact again with a larger "
                f"limits.max_context"
            )
        return tokens

    def _chunk(self, chunk: int | None, length: int) -> int:
        chunk = options.whole(
            "chunk", chunk, 1, otherwise="None for as many as a prompt's steps", error=RequestError
        )
        if not self._info.steps.extend and (chunk is None or chunk > 1):
            if chunk is not None and chunk < length:
                raise RequestError(f"chunk={chunk}: this engine only runs chunks of 1, or all")
            return length
        return chunk or MAX_TOKENS_PER_STEP

    def _run_all(self, groups: Sequence[RequestGroup]) -> list[RequestOutput]:
        core = self._open_core()
        generations = [generation for group in groups for generation in group.generations]
        try:
            for generation in generations:
                core.add(generation)
            while not all(generation.finished for generation in generations):
                core.step()
        finally:
            core.abort(generations)
        errors = [group.error for group in groups if group.error is not None]
        if errors and all(group.failed for group in groups):
            raise errors[0]
        for error in errors:
            logger.error("a request failed: %s", error)
        return [group.output() for group in groups]

    def _stream(self, group: RequestGroup) -> Generator[RequestOutput]:
        core = self._open_core()
        for generation in group.generations:
            core.add(generation)
        try:
            while True:
                news = group.news(RequestOutputKind.DELTA)
                if news is not None:
                    yield news
                elif group.finished:
                    break
                else:
                    core.step()
            if group.error is not None:
                raise group.error
        finally:
            core.abort(group.generations)


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


def _named(
    index: int, count: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call the function for one of ``count`` prompts; its RequestError then names the index."""
    try:
        return function(*args, **kwargs)
    except RequestError as error:
        if count == 1:
            raise
        raise type(error)(f"prompt {index}: {error}") from error


def _params_for(
    count: int,
    given: SamplingParams | Sequence[SamplingParams] | None,
    defaults: SamplingParams,
) -> list[SamplingParams]:
    """The parameters of each of ``count`` prompts."""
    if given is None or isinstance(given, SamplingParams):
        return [given or defaults] * count
    items = given if isinstance(given, Sequence) else [given]
    for item in items:
        if not isinstance(item, SamplingParams):
            raise SamplingParamsError(
                f"sampling_params={item!r:.80}: give a SamplingParams, or a list with one for "
                f"each prompt"
            )
    if len(given) != count:
        raise SamplingParamsError(
            f"{len(given)} sampling_params for {count} prompts: give one, or one for each prompt"
        )
    return list(given)
